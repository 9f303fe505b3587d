"""What the page says: a phrase in English and in Korean, with the same places for values."""

LANGS = ("en", "ko")
WORDS = {
    "title": ("Look inside a model", "모델 들여다보기"),
    "intro": (
        "Drop a picture, and see what the model says and where it looks.",
        "이미지를 놓으면 모델의 예측과 모델이 보는 곳을 보여 줍니다.",
    ),
    "run": ("{name}, step {step:,}", "{name}, {step:,}스텝"),
    "picture": ("Picture: drop, paste or choose", "이미지: 놓기, 붙여넣기 또는 고르기"),
    "drop": ("Drop a picture here, or click to choose", "여기에 이미지를 놓거나 눌러서 고르세요"),
    "limits": (
        "JPEG, PNG, WebP, GIF or BMP, up to {megabytes} MB and {megapixels} megapixels. "
        "Pictures stay on this server and are deleted within an hour.",
        "JPEG, PNG, WebP, GIF, BMP, 최대 {megabytes}MB, {megapixels}메가픽셀. "
        "이미지는 이 서버 밖으로 나가지 않고 한 시간 안에 지워집니다.",
    ),
    "resolution": ("Resolution the model is given", "모델에 넣는 해상도"),
    "top": ("Most probable classes", "확률이 가장 높은 클래스"),
    "class": ("Class", "클래스"),
    "probability": ("Probability", "확률"),
    "unnamed": (
        "This model has no classifier, so it names no classes.",
        "이 모델에는 분류기가 없어서 클래스를 말하지 않습니다.",
    ),
    "attention": ("Attention", "어텐션"),
    "gradcam": ("Grad-CAM", "Grad-CAM"),
    "layer": ("Layer", "층"),
    "stage": ("Stage", "스테이지"),
    "layer_or_stage": ("Layer or stage", "층 또는 스테이지"),
    "heads": ("Heads", "헤드"),
    "mean": ("mean of all", "전체 평균"),
    "one": ("one head", "헤드 하나"),
    "rollout": ("rollout", "롤아웃"),
    "rollout_hint": (
        "Rollout follows attention through all layers up to this one.",
        "롤아웃은 이 층까지 모든 층의 어텐션을 따라갑니다.",
    ),
    "head": ("Head (from 0)", "헤드 번호 (0부터)"),
    "strength": ("Opacity of the map", "맵의 불투명도"),
    "whose": ("Whose attention", "무엇의 어텐션"),
    "cls": ("class token ([CLS])", "클래스 토큰 ([CLS])"),
    "average": ("average patch", "패치 평균"),
    "either": ("class token or average patch", "클래스 토큰 또는 패치 평균"),
    "patch": ("one patch", "패치 하나"),
    "patch_hint": (
        "Click a patch of the picture, or give its row and column, from 1.",
        "그림에서 패치를 누르거나 행과 열을 1부터 입력하세요.",
    ),
    "row": ("Row", "행"),
    "column": ("Column", "열"),
    "explained": ("Class that Grad-CAM explains", "Grad-CAM이 설명할 클래스"),
    "rank": ("no. {rank}", "{rank}위"),
    "in_layer": ("Layer {layer} of {depth}", "{depth}개 층 중 {layer}층"),
    "in_stage": ("Stage {layer} of {depth}", "스테이지 {depth}개 중 {layer}"),
    "by_mean": ("mean of {count} heads", "헤드 {count}개의 평균"),
    "by_one": ("head {head} of 0 to {last}", "헤드 {head} (0~{last})"),
    "by_rollout": ("rollout up to this layer", "이 층까지의 롤아웃"),
    "from_cls": ("from [CLS]", "[CLS]에서"),
    "from_average": ("from the average patch", "패치 평균에서"),
    "from_patch": ("from the patch in row {row}, column {column}", "{row}행 {column}열 패치에서"),
    "for_class": ("what speaks for {name}", "{name}의 근거"),
    "scale": (
        "image {side} × {side}, {rows} × {columns} patches; the brightest is {most:.1%}, "
        "an even share would be {even:.1%}",
        "이미지 {side} × {side}, 패치 {rows} × {columns}; 가장 밝은 곳이 {most:.1%}, "
        "고르게 보면 {even:.1%}",
    ),
    "scale_cam": (
        "image {side} × {side}, {rows} × {columns} units; each map has its own scale",
        "이미지 {side} × {side}, 유닛 {rows} × {columns}; 맵마다 척도가 다릅니다",
    ),
    "flat": ("nothing here speaks for it", "이를 지지하는 곳이 없습니다"),
    "waiting": ("No picture yet.", "아직 이미지가 없습니다."),
    "broken": ("This picture cannot be read: {cause}", "이 이미지를 읽을 수 없습니다: {cause}"),
    "token": ("Access token", "접속 토큰"),
    "token_hint": (
        "It was said when this page was started.",
        "이 페이지를 시작할 때 정한 것입니다.",
    ),
    "enter": ("Enter", "들어가기"),
    "wrong": ("That is not the token.", "토큰이 맞지 않습니다."),
    "refused": ("This address or this request is not served here.", "받아들이지 않는 요청입니다."),
    "too_large": ("That is too large to send.", "보내기에 너무 큽니다."),
}


class Words:
    """say("layer") -> the phrase in one language, with the values put in."""

    def __init__(self, lang):
        self.lang = lang

    def __call__(self, phrase, **values):
        return WORDS[phrase][LANGS.index(self.lang)].format(**values)
