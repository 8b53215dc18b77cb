"""The explorer page in Gradio. It only wires: what is computed comes from ``explorer.py`` and ``curation.py``."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from inversedmixup.errors import InputError
from inversedmixup.explore import fragments
from inversedmixup.explore.curation import (
    ANY,
    PAGE_ROWS,
    STATES,
    Decision,
    Filters,
    decide,
    export,
    pair_name,
    select,
)
from inversedmixup.explore.explorer import LAMS, Explorer, Strip
from inversedmixup.gate import REASONS
from inversedmixup.row_file import SUFFIXES

TITLE = "inversedmixup explorer"
DAY = 86_400  # seconds
OFFERED = 300  # training sentences in the lists; any other can be typed
# A click or a choice in a table tells the server which row; afterwards the keyboard stays where it was.
TABLE_EVENTS = """
let last = null;
const tell = (event, kind) => {
  const found = event.target.closest(kind);
  if (!found || !element.contains(found)) return;
  last = found.dataset.key;
  const {row = '', pair = '', action = ''} = found.dataset;
  trigger('click', {row, pair, action, label: found.value});
};
element.addEventListener('click', event => tell(event, 'button[data-key]'));
element.addEventListener('change', event => tell(event, 'select[data-key]'));
watch('value', () => {
  if (last !== null) element.querySelector('[data-key="' + CSS.escape(last) + '"]')?.focus();
});
"""
# The whole strip is in the page: a λ move only shows another part of it, without asking the server.
FOLLOW_LAM = """
const show = () => requestAnimationFrame(() => {
  const slider = document.querySelector('#lam input[type=range]');
  const parts = [...element.querySelectorAll('[data-lam]')];
  if (!slider || !parts.length) return;
  const far = parts.map(part => Math.abs(Number(part.dataset.lam) - Number(slider.value)));
  const nearest = far.indexOf(Math.min(...far));
  parts.forEach((part, at) => part.setAttribute('aria-current', at === nearest));
});
document.addEventListener('lam', show);
watch('value', show);
show();
"""
TELL_LAM = "() => { document.dispatchEvent(new Event('lam')); }"


def launch(explorer: Explorer, *, host: str = "127.0.0.1", port: int | None = None, browser: bool = False) -> gr.Blocks:
    """Serve the page in the background until ``close()`` is called on what is returned; its address is ``local_url``.

    Raises:
        InputError: if the port is taken or the host cannot be bound.
    """
    exports = tempfile.TemporaryDirectory(prefix="inversedmixup-")
    page = build_page(explorer, Path(exports.name))

    @asynccontextmanager
    async def served(app: object) -> AsyncIterator[None]:
        with exports:  # the user's rows do not outlive the page
            yield

    try:
        page.launch(
            server_name=host, server_port=port, inbrowser=browser, prevent_thread_lock=True, quiet=True, share=False,
            app_kwargs={"lifespan": served},
            css=(files("inversedmixup.explore") / "page.css").read_text(encoding="utf-8"), footer_links=[],
            # the stock themes fetch their fonts
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )  # fmt: skip
    except (OSError, ValueError, OverflowError) as error:
        exports.cleanup()
        raise InputError(
            f"explore: {host}:{port or 'any port'} cannot be used ({error}); choose another --port"
        ) from None
    return page


def build_page(explorer: Explorer, exports: Path) -> gr.Blocks:
    """The page; curated sets are written into folders in ``exports``."""
    # gradio copies what is downloaded: a day later, or when the page closes, the copy is removed
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        gr.Markdown(f"# {TITLE}\nWhat a language model writes between two sentences, and what a run made of yours.")
        with gr.Tab("Mix"):
            _mix_tab(explorer)
        with gr.Tab("Rows"):
            _rows_tab(explorer, exports)
    return page


# ---- mix ---------------------------------------------------------------------------------------------------------


def _mix_tab(explorer: Explorer) -> None:
    offered, start = _offered(explorer)
    strip = gr.State(None)
    with gr.Row():
        first, second = (
            gr.Dropdown(
                offered, value=text, label=f"{name} sentence ({where})", allow_custom_value=True, interactive=True,
                info="Pick a training sentence or type your own.", elem_id=f"{name.lower()}-sentence",
            )
            for name, where, text in (("First", "A, at λ = 1", start[0]), ("Second", "B, at λ = 0", start[1]))
        )  # fmt: skip
    with gr.Row():
        write = gr.Button("Write the strip", variant="primary", elem_id="write")
        stop = gr.Button("Stop", elem_id="stop")
    status = gr.HTML(fragments.status("Ready."), elem_id="status")
    lam = gr.Slider(0.0, 1.0, value=0.5, step=0.05, label="λ, the weight of the first sentence", elem_id="lam")
    with gr.Row():
        with gr.Column(scale=3):
            points = gr.HTML(fragments.points(None), js_on_load=FOLLOW_LAM, elem_id="points")
        with gr.Column(scale=2):
            kind = gr.Radio(
                explorer.maps, value="PCA", label="Map of the training rows", visible=len(explorer.maps) > 1
            )
            training_map = gr.HTML(fragments.training_map(explorer, None, "PCA"), js_on_load=FOLLOW_LAM, elem_id="map")
    table = gr.HTML("", js_on_load=FOLLOW_LAM, elem_id="strip")
    draw = gr.Button("Draw candidates at this λ", elem_id="draw")
    candidates = gr.HTML("", elem_id="candidates")
    drawn_from = [points, training_map, table]

    def write_strip(first: str, second: str, kind: str) -> Iterator[tuple[Any, ...]]:
        yield gr.skip(), fragments.status("Writing …", 0, len(LAMS)), *[gr.skip()] * 3
        try:
            for grown in explorer.strip(first, second):
                done = len(grown.points)
                text = "Written." if grown.finished else f"Written {done} of {len(LAMS)} …"
                line = fragments.status(text) if grown.finished else fragments.status(text, done, len(LAMS))
                on_map = fragments.training_map(explorer, grown, kind)
                yield grown, line, fragments.points(grown), on_map, fragments.whole_strip(grown)
        except InputError as error:
            yield gr.skip(), fragments.status(str(error)), *[gr.skip()] * 3

    def draw_candidates(first: str, second: str, lam: float) -> Iterator[tuple[Any, str]]:
        yield gr.skip(), fragments.status("Drawing candidates …", 0, 1)
        try:
            drawn = fragments.candidates(explorer.candidates(first, second, lam))
            yield drawn, fragments.status(f"Candidates at λ = {lam:.2f}.")
        except InputError as error:
            yield gr.skip(), fragments.status(str(error))

    def draw_map(strip: Strip | None, kind: str) -> Iterator[tuple[Any, str]]:
        yield gr.skip(), fragments.status(f"Drawing the map with {kind} …", 0, 1)  # the first UMAP takes half a minute
        yield fragments.training_map(explorer, strip, kind), fragments.status(f"Map drawn with {kind}.")

    writing = write.click(
        write_strip, [first, second, kind], [strip, status, *drawn_from], show_progress="hidden",
        concurrency_limit=None,
    )  # fmt: skip
    drawing = draw.click(
        draw_candidates, [first, second, lam], [candidates, status], show_progress="hidden", concurrency_limit=None
    )
    mapping = kind.change(
        draw_map, [strip, kind], [training_map, status], show_progress="hidden", concurrency_limit=None
    )
    at_work = [writing, drawing, mapping]
    stop.click(lambda: fragments.status("Stopped."), None, status, cancels=at_work, show_progress="hidden")
    lam.change(None, js=TELL_LAM)


def _offered(explorer: Explorer) -> tuple[list[str], tuple[str, str]]:
    """Sentences for the lists, spread over the file, and two of different classes to begin with."""
    step = max(1, -(-len(explorer.examples) // OFFERED))
    first = explorer.examples[0]
    second = next(example for example in explorer.examples if example.label != first.label)
    texts = [first.text, second.text, *(example.text for example in explorer.examples[::step])]
    return list(dict.fromkeys(texts)), (first.text, second.text)


# ---- rows --------------------------------------------------------------------------------------------------------


def _rows_tab(explorer: Explorer, exports: Path) -> None:
    by_id = {row.id: row for row in explorer.rows}
    pairs = sorted(pair_name(classes) for classes in explorer.evidence.pairs)
    reasons = [reason for reason in REASONS if reason in explorer.evidence.by_reason]
    decisions = gr.State({})
    heat = gr.HTML(fragments.heat_map(explorer), js_on_load=TABLE_EVENTS, elem_id="heat", visible=bool(pairs))
    with gr.Row():
        state = gr.Dropdown(list(STATES), value=ANY, label="State")
        label = gr.Dropdown([ANY, *explorer.classes], value=ANY, label="Label")
        reason = gr.Dropdown([ANY, *reasons], value=ANY, label="Reason of the gate")
        pair = gr.Dropdown([ANY, *pairs], value=ANY, label="Classes of the parents", elem_id="pair")
    with gr.Row():
        words = gr.Textbox("", label="Text contains", elem_id="words")
        intruded = gr.Checkbox(False, label="Intruded rows only")
        number = gr.Number(1, label="Page", precision=0, minimum=1)
    count = gr.HTML("", elem_id="count")
    table = gr.HTML("", js_on_load=TABLE_EVENTS, elem_id="rows")
    with gr.Row():
        suffix = gr.Dropdown(list(SUFFIXES), value=SUFFIXES[0], label="Format", elem_id="format")
        save = gr.Button("Export the curated set", variant="primary", elem_id="export")
    saved = gr.File(label="Curated set", visible=False, elem_id="saved")
    exported = gr.HTML("", elem_id="exported")
    filters = [state, label, reason, pair, words, intruded]

    def show(decisions: dict[str, Decision], number: float | None, *chosen: Any) -> tuple[str, str]:
        found = list(select(explorer.rows, decisions, Filters(*chosen), explorer.evidence, explorer.classes))
        pages = max(1, -(-len(found) // PAGE_ROWS))
        page = min(max(int(number or 1), 1), pages)
        part = found[(page - 1) * PAGE_ROWS : page * PAGE_ROWS]
        line = f"{len(found)} of {len(explorer.rows)} rows, page {page} of {pages}; {len(decisions)} changed by you."
        return fragments.status(line), fragments.table(explorer, part, decisions, len(explorer.rows))

    def change(
        event: gr.EventData, decisions: dict[str, Decision], number: float | None, *chosen: Any
    ) -> tuple[Any, ...]:  # fmt: skip
        row, action = by_id.get(event.row), event.action
        if row is not None and action in ("keep", "reject"):
            try:
                decisions = decide(decisions, row, kept=action == "keep")
            except InputError as error:
                return decisions, fragments.status(str(error)), gr.skip()
        elif row is not None and event.label in explorer.classes:
            decisions = decide(decisions, row, label=event.label)
        return decisions, *show(decisions, number, *chosen)

    def choose_pair(event: gr.EventData) -> str:
        return event.pair if event.pair in pairs else ANY

    def save_curated(decisions: dict[str, Decision], suffix: str) -> tuple[Any, str]:
        path = Path(tempfile.mkdtemp(dir=exports)) / f"curated{suffix}"
        written = export(
            explorer.rows, decisions, path, explorer.evidence, explorer.classes, originals=explorer.originals
        )  # fmt: skip
        among = f", {len(explorer.originals)} of them your own" if explorer.originals else ""
        return gr.File(str(path), visible=True), fragments.status(f"{written} rows in {path.name}{among}.")

    shown, watched = [count, table], [decisions, number, *filters]
    for control in (*filters, number):
        control.change(show, watched, shown, show_progress="hidden", trigger_mode="always_last")
    table.click(change, watched, [decisions, *shown], show_progress="hidden", trigger_mode="multiple")
    heat.click(choose_pair, None, pair, show_progress="hidden")
    save.click(save_curated, [decisions, suffix], [saved, exported], show_progress="hidden")
    count.value, table.value = show({}, 1, *[control.value for control in filters])
