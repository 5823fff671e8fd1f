"""The report's style sheet: readable type, quiet tables, nothing fetched from anywhere."""

STYLE = """
:root { color-scheme: light; --ink: #1d2329; --soft: #667079; --line: #dde2e6; --best: #e3f3ea; --link: #1a5a96; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main { max-width: 72rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .8rem; padding-top: 1rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .2rem; }
p { max-width: 46rem; }
.lead { color: var(--soft); font-size: 1.05rem; }
.note { color: var(--soft); font-size: .9rem; margin: .1rem 0 .6rem; }
nav { font-size: .9rem; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { padding-left: .5rem; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid var(--ink); }
thead th.group { text-align: center; border-bottom: 1px solid var(--line); }
tbody th { text-align: left; font-weight: 600; min-width: 6rem; overflow-wrap: break-word; }
td small { display: block; color: var(--soft); font-size: .75rem; white-space: nowrap; }
tr.frame th, tr.frame td { color: var(--soft); font-weight: 400; font-style: italic; }
td.best, span.best { background: var(--best); font-weight: 700; }
span.best { padding: 0 .3rem; }
.up { color: #b2182b; font-weight: 600; }
.down { color: #2166ac; font-weight: 600; }
figure { margin: 1.4rem 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .88rem; max-width: 46rem; margin-top: .3rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { font-size: .78rem; background: #f6f7f8; padding: .8rem; overflow-x: auto; max-height: 24rem; }
@media print { nav { display: none; } h2 { break-after: avoid; } figure, table { break-inside: avoid; }
  .scroll { overflow: visible; } img { min-width: 0 !important; } }
"""
