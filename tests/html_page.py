"""A page of ours as a browser reads it, and text that tries to be more than text."""

from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}
UNREAD = {"style", "svg", "defs"}

# The product stands nowhere else: not in a score, nor in the name of a temporary folder.
PRODUCT = str(7919 * 104729)
EVIL = "<img src=x onerror=alert(1)>\"'</style></script><script>{{ 7919 * 104729 }}"


class HtmlPage(HTMLParser):
    """Reads a page, holds its tags to be balanced, and remembers what it met."""

    def __init__(self, source):
        super().__init__()
        self.source = source
        self.elements = []
        self.texts = []
        """The class, or else the tag, of the element that a text stands in; and the text."""
        self._open = []
        self._words = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements.append((tag, found))
        if tag not in VOID:
            self._open.append((tag, found.get("class") or tag))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1][1] if self._open else "", data))
        if not UNREAD & {tag for tag, _ in self._open}:
            self._words.append(data)

    @property
    def text(self):
        """All that can be read, styles and drawings left out."""
        return " ".join(" ".join(self._words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def of(self, kind):
        return [text for where, text in self.texts if where == kind]

    def count_texts(self, word):
        return sum(word in words for words in self._words)

    def assert_inert(self):
        """Hold the page to have no script, no handler, and no template that was worked out."""
        assert not self.all("script")
        assert not [one for _, found in self.elements for one in found if one.startswith("on")]
        assert PRODUCT not in self.source


def read_page(path):
    return HtmlPage(path.read_text(encoding="utf-8"))
