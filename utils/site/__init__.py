"""The site: the book, the documents, a reference and the explorer as one folder of pages that asks nobody for anything.

    make site                              build/site/html, from the repository and packages alone
    python -m utils.site.check FOLDER      every link and anchor, every orphan, every resource from elsewhere

In the order of the work: `pages` (which pages there are, and in which order one reads them), `markdown`, `notebook`,
`reference` and `ledger` (one text each), `stage` (links, the way on, the source), then Zensical, then `code` (pages of
the source files that something links to), `formulas.mjs` (KaTeX) and `check`.
"""
