"""What an HTML page asks for."""

from html.parser import HTMLParser


class Resources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags, self.images = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data"):
                self.images += value.startswith("data:image/png;base64,")
                self.links += [] if value.startswith("data:") else [value]
