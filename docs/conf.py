"""Settings of the documentation. `make docs` builds it: pages with code run, and warnings are errors."""

import hashlib
import importlib
import inspect
import os
import shutil
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms import SphinxTransform
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
sys.path.insert(0, str(HERE.parent))

sys.path.insert(0, str(HERE))
import make_configuration  # noqa: E402

import molequi  # noqa: E402

project = "molequi"
author = "the molequi developers"
copyright = "2026, the molequi developers"
release = version = molequi.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathml"
html_title = "molequi"
html_static_path = ["_static"]
html_css_files = ["molequi.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "changelog": [], "contributing": []}

# Pages. Each runs in a new folder that holds `data`: IPython executes page_folder.py first.
_startup = BUILD / "ipython" / "profile_default" / "startup"
_startup.mkdir(parents=True, exist_ok=True)
shutil.copy(HERE / "page_folder.py", _startup)
os.environ["IPYTHONDIR"] = str(BUILD / "ipython")
os.environ["MOLEQUI_REPOSITORY"] = str(HERE.parent)
os.environ["MOLEQUI_VIEW"] = "picture"  # a widget would add megabytes to each page
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # networks of pages are small, and other programs may be running
# Commands of pages run this package with this Python, whatever is installed.
_commands = BUILD / "bin"
_commands.mkdir(parents=True, exist_ok=True)
_molequi = _commands / "molequi"
_molequi.write_text(
    f"#!{sys.executable}\nimport sys\nfrom molequi.cli import main\nif __name__ == '__main__':\n"
    "    sys.exit(main())\n",
    "utf-8",
)
_molequi.chmod(0o755)
os.environ["PATH"] = os.pathsep.join([str(_commands), str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
# Results are kept until a page, the package, or a file that pages import changes.
_sources = [
    *sorted((HERE.parent / "molequi").rglob("*.py")),
    *sorted((HERE.parent / "tests/extensions").glob("own_*.py")),
    HERE / "page_folder.py",
]
_digest = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()
nb_execution_cache_path = str(BUILD / "pages" / _digest[:12])
nb_execution_timeout = 300  # of a cell, which takes seconds on a quiet machine
nb_execution_raise_on_error = True
nb_execution_show_tb = True  # the log says which cell failed, and why
nb_output_stderr = "remove"  # progress; page_folder.py makes errors of warnings
nb_merge_streams = True

# Reference. Docstrings give the types, so signatures show names and defaults only.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = True
autosummary_imported_members = False
autosummary_ignore_module_all = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True


def _modules() -> dict[str, list[str]]:
    """Public modules and their names, without those of `molequi` itself: each name is documented once."""
    top = {id(getattr(molequi, name)) for name in (*molequi.__all__, *molequi.models.BACKBONES)}
    out = {}
    for short in molequi.PUBLIC_MODULES:
        module = importlib.import_module(f"molequi.{short}")
        listed = getattr(module, "__all__", None)
        if listed is None:
            own = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
            listed = [n for n in own if not n.startswith("_")]
        out[module.__name__] = sorted((n for n in listed if id(getattr(module, n)) not in top), key=str.lower)
    return out


def write_reference(app: Sphinx, config: Config) -> None:
    """Writes a page for each public module with a table of its names; autosummary makes their pages."""
    folder = HERE / "reference" / "modules"
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for module, names in _modules().items():
        if not names:
            continue
        title, _, text = inspect.cleandoc(sys.modules[module].__doc__ or "").partition("\n")
        table = "".join(f"   {name}\n" for name in names)
        page = f"{module}\n{'=' * len(module)}\n\n{title}\n{text}\n\n.. module:: {module}\n\n"
        page += f".. autosummary::\n   :toctree: ../api\n   :nosignatures:\n\n{table}"
        path = folder / f"{module}.rst"
        written.add(path)
        if not path.is_file() or path.read_text("utf-8") != page:
            path.write_text(page, "utf-8")
    for path in set(folder.glob("*.rst")) - written:
        path.unlink()


def write_configuration(app: Sphinx, config: Config) -> None:
    """Write the page of all options of a run."""
    path, text = HERE / "reference" / "configuration.md", make_configuration.page()
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


class ShowCellMagics(SphinxTransform):
    """Show a cell of commands or of a file as what it is, without the `%%` line that Jupyter needs."""

    default_priority = 300

    def apply(self) -> None:
        """Change the cells of one page."""
        for block in self.document.findall(nodes.literal_block):
            magic, _, text = block.astext().partition("\n")
            if magic == "%%bash":
                block["language"] = "bash"
            elif magic.startswith("%%writefile "):
                block["language"] = "yaml"
                text = f"# {magic.removeprefix('%%writefile ')}\n{text}"
            else:
                continue
            block.rawsource = text
            block.children = [nodes.Text(text)]


def write_inline_math(writer: HTML5Translator, node: nodes.math) -> None:
    """A formula as MathML, which browsers show without a script from the network."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def write_math_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    """A formula in a paragraph of its own."""
    writer.body.append(f'<p class="math">{tex2mathml(node.astext(), as_block=True)}</p>')
    raise nodes.SkipNode


def own_docstring(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """A table of names has the docstring of `dict`, which says nothing about it.

    Napoleon takes what stands before a colon in the first line of a property for its type: it goes back.
    """
    if isinstance(value, (dict, list, tuple, str)):
        lines.clear()
    kinds = [line for line in lines if line.startswith(":type: ")] if what == "property" else []
    if kinds:
        lines.remove(kinds[0])
        lines[0] = f"{kinds[0].removeprefix(':type: ')}: {lines[0]}"


def setup(app: Sphinx) -> None:
    """Called by Sphinx: the pages of modules must exist before it looks for pages."""
    app.connect("config-inited", write_reference)
    app.connect("config-inited", write_configuration)
    app.connect("autodoc-process-docstring", own_docstring, priority=600)  # after Napoleon
    app.add_transform(ShowCellMagics)
    app.add_html_math_renderer("mathml", (write_inline_math, None), (write_math_block, None))
