"""The texts on which the explorer's model is held equal to the package."""

TEXTS = [
    "def read_lines(path, encoding=None):\n    return [line.rstrip() for line in open(path)]\n",
    "The statement is used to",
    "a",
    "12345 and 3.14159, 1e-7",
    "Grüße aus Köln, café, naïve, œuvre",
    "深度求索 开源 模型 第三版",
    "ひらがなとカタカナの文",
    "emoji 🙂🚀 and 👩‍👩‍👧 together",
    "\n\n\n  indented\n\tand tabbed\r\n",
    "x" * 70,
    "SELECT name, id FROM users WHERE id >= 10 ORDER BY name;",
    "to be, or not to be: that is the question",
    "Ж и Щ, русский текст",
    "[1, 2, 3].map((x) => x * x) // squares",
    "   leading and trailing   ",
    "$\\sum_{i=1}^{n} x_i^2 \\le 1$",
    "import torch\nfrom torch import nn\n\nclass Block(nn.Module):\n    pass\n",
    "<｜User｜>hello<｜Assistant｜>",
    "one two three four five six seven eight nine ten eleven twelve thirteen",
    "!?!?;;--__''\"\"",
]
