"""The report of a run: one HTML file that needs no network, and the dataset card.

``results.py`` reads a run folder, ``evidence.py`` counts what its rows show, ``page.py`` and ``page.html`` draw it,
``dataset_card.py`` writes the card.
"""
