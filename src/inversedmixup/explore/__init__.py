"""The explorer: a local page to mix two sentences, look at a run and curate its rows.

``explorer.py`` computes, ``curation.py`` keeps one visitor's decisions, ``fragments.py`` and ``fragments.html`` draw,
``page.py`` wires them to Gradio, the only module that needs it.
"""
