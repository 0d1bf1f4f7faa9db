"""docs/api.md is what the docstrings say, of every public name."""

import inspect

import pytest

import src.library
from scripts import api_page


def test_the_page_is_up_to_date():
    assert api_page.PAGE.read_text() == api_page.page(), "write it anew: python -m scripts.api_page"


def test_every_public_name_has_its_place():
    names = " ".join(api_page.GROUPS.values()).split()
    assert sorted(names) == sorted(src.library.__all__)
    text = api_page.PAGE.read_text()
    assert all(f"### `{name}`\n" in text for name in names)


@pytest.mark.parametrize(
    "name", ["attend", "load_model", "SparseTransformer", "Pattern", "generate", "Draw", "Portions"]
)
def test_every_argument_is_described(name):
    described = api_page.described(name, getattr(src.library, name)).partition("\n#### ")[0]
    parameters = inspect.signature(getattr(src.library, name)).parameters
    assert parameters and all(f"- `{parameter}`: " in described for parameter in parameters)


def test_sections_become_lists():
    def thing(first: int, second: str = "a") -> int:
        """Do it.

        Args:
            first: a number
                over two lines.
            second: ``a`` or ``b``.

        Returns:
            A number.

        Raises:
            ValueError: never.
        """

    assert api_page.described("thing", thing) == (
        '### `thing`\n\n```python\nthing(first: int, second: str = "a") -> int\n```\n\nDo it.\n\n'
        "**Args**\n\n- `first`: a number over two lines.\n- `second`: `a` or `b`.\n\n"
        "**Returns**\n\nA number.\n\n**Raises**\n\n- `ValueError`: never.\n"
    )
