"""How the page looks: the system's font, one accent color, light or dark as the reader has it."""

CSS = """
:root { --ground: #ffffff; --raised: #f7f8fa; --text: #1b1f24; --soft: #5c6570; --line: #e2e5e9;
  --accent: #2563c9; --second: #8a94a0; --right: #1a7f4b; --wrong: #b3372b; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --raised: #1c2026; --text: #e6e9ed;
  --soft: #9aa4b0; --line: #2d333b; --accent: #6ea8ff; --second: #7d8794; --right: #57c78c;
  --wrong: #f08a7e; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--ground); color: var(--text); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
nav { position: sticky; top: 0; z-index: 2; display: flex; gap: 1.25rem; overflow-x: auto;
  padding: .7rem max(1rem, calc(50vw - 560px)); background: var(--ground);
  border-bottom: 1px solid var(--line); white-space: nowrap; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--accent); }
main { max-width: 1152px; margin: 0 auto; padding: 1rem 1rem 5rem; }
h1 { margin: 1.2rem 0 .2rem; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 3.2rem 0 .8rem; font-size: 1.35rem; }
h3 { margin: 2rem 0 .6rem; font-size: 1.02rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.lead, .note, .unit { color: var(--soft); }
.note, .unit, .newest { font-size: .87rem; }
.missing { color: var(--soft); padding: .5rem .8rem; border-left: 3px solid var(--line); }
.alarm { padding: .5rem .8rem; border-left: 3px solid var(--wrong); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .8rem;
  list-style: none; margin: 1.4rem 0 0; padding: 0; }
.tiles li { display: flex; flex-direction: column; padding: .8rem 1rem; border-radius: 8px;
  background: var(--raised); }
.tiles .value { font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles .note { font-size: .8rem; }
.grid { display: grid; gap: 1.2rem; margin: 1rem 0; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.maps { grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.few { grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); }
figure { margin: 0; }
.chart { padding: .9rem 1rem .5rem; border-radius: 8px; background: var(--raised); }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .7rem; }
.newest { order: 1; margin-left: auto; font-weight: 600; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.unit, .legend { order: 2; flex-basis: 100%; }
.key { margin-right: 1rem; white-space: nowrap; font-size: .87rem; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: 1.1em; margin-right: .4em;
  vertical-align: .25em; border-top: 3px solid var(--accent); }
.key-2::before { border-top: 2px dashed var(--second); }
.key-3::before { border-top: 2px dotted var(--second); }
.map .key::before { width: .7em; height: .7em; border: 0; border-radius: 50%; vertical-align: 0;
  background: var(--accent); }
.map .key-ring::before { background: none; border: 1.5px solid var(--second); }
svg { display: block; width: 100%; height: auto; margin-top: .3rem; overflow: visible; }
svg text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.map { overflow-x: auto; } .map svg { min-width: 460px; } .map text { font-size: 11px; }
.axis line { stroke: var(--line); } .axis .base { stroke: var(--second); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--accent); }
.line-2, .line-3 { stroke: var(--second); stroke-width: 1.5; stroke-dasharray: 5 3; }
.line-3 { stroke-dasharray: 1.5 3; }
.band-1 { fill: var(--accent); opacity: .16; }
.band-2, .band-3 { fill: var(--second); opacity: .12; }
.dots-1 { fill: var(--accent); } .dots-2, .dots-3 { fill: var(--second); }
.hovers rect { fill: transparent; } .hovers circle { fill: var(--text); opacity: 0; }
.hovers g:hover circle { opacity: 1; } .hovers g:hover rect { fill: var(--second); opacity: .12; }
.pair line { stroke: var(--second); opacity: .25; } .disc circle { fill: var(--accent); }
.ring circle { fill: var(--ground); stroke: var(--second); stroke-width: 1.3; }
.disc circle:hover, .ring circle:hover { stroke: var(--text); stroke-width: 2; }
.framed rect { fill: #fff; stroke: var(--accent); stroke-width: 1.5; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .87rem; padding-bottom: .4rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; font-size: .87rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
td:last-child:not(.cell):not(.number) { min-width: 9rem; }
.interval { display: block; color: var(--soft); font-size: .82rem; white-space: nowrap; }
.whisker { position: relative; display: block; width: 7rem; height: 8px; margin: .25rem 0 .1rem;
  border-radius: 4px; background: var(--raised); box-shadow: inset 0 0 0 1px var(--line); }
.whisker i { position: absolute; top: 0; height: 8px; border-radius: 4px; min-width: 2px;
  background: var(--accent); opacity: .4; }
.whisker b { position: absolute; top: 0; width: 3px; height: 8px; margin-left: -1px;
  background: var(--accent); }
.number { text-align: right; white-space: nowrap; padding-right: 1.4rem; }
.matrix th, .matrix td { border: 0; padding: 0; font-size: .8rem; }
.matrix thead th { padding: 0 .2rem .4rem; max-width: 5rem; text-align: center; hyphens: auto;
  overflow-wrap: break-word; font-size: .72rem; }
.matrix tbody th { padding: 0 .7rem 0 0; max-width: 15rem; vertical-align: middle; font-weight: 400;
  text-align: right; line-height: 1.2; }
.matrix .cell { width: 4.3rem; min-width: 3.4rem; height: 2.3rem; text-align: center;
  vertical-align: middle; border: 2px solid var(--ground); border-radius: 6px;
  background: color-mix(in srgb, var(--accent) var(--share), var(--raised)); }
.matrix .marked { box-shadow: inset 0 0 0 2px var(--text); }
.facts { columns: 2; column-gap: 3rem; margin: 0; }
.facts div { display: grid; grid-template-columns: 9.5rem 1fr; gap: 0 1rem; padding: .15rem 0;
  break-inside: avoid; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.card { padding: .8rem; border-radius: 8px; background: var(--raised); }
.card h4 { margin: 0; font-size: .95rem; overflow-wrap: anywhere; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .5rem; }
.strip figure { width: 76px; } .strip figcaption { display: block; font-size: .75rem;
  line-height: 1.25; overflow-wrap: anywhere; margin-top: .2rem; }
img { display: block; width: 76px; height: 76px; object-fit: contain; padding: 3px;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
img.small { width: 44px; height: 44px; margin: 0 auto; }
.right img { outline: 2.5px solid var(--right); outline-offset: 1px; }
.right figcaption, li.right { color: var(--right); font-weight: 600; }
.guess { display: block; } .truth { display: block; color: var(--text); font-weight: 600; }
.wrong .guess { color: var(--wrong); }
h4.minor { margin: 1.4rem 0 .3rem; font-size: .93rem; }
.query { display: grid; grid-template-columns: minmax(0, 15rem) 1fr; gap: .6rem 1.4rem;
  align-items: center; padding: .8rem 0; border-bottom: 1px solid var(--line); }
.query .asked { overflow-wrap: anywhere; } .query ol { margin: 0; padding-left: 3rem; }
.query .strip { margin: 0; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; padding: 1rem; border-radius: 8px; background: var(--raised);
  font-size: .82rem; line-height: 1.45; }
.hidden { position: absolute; width: 0; height: 0; overflow: hidden; margin: 0; }
footer { margin-top: 4rem; color: var(--soft); font-size: .87rem; }
@media (max-width: 640px) { .query { grid-template-columns: 1fr; } h1 { font-size: 1.5rem; }
  .facts { columns: 1; } .facts div { grid-template-columns: 7.5rem 1fr; } }
@media print { nav { display: none; } section { break-inside: avoid-page; } }
"""
