"""How the page looks: light and dark, wide and narrow. The page's policy allows exactly this text, by its hash."""

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2329;--dim:#59636e;--line:#d5dae0;--box:#f5f7f9;
--c0:#0b62c4;--c1:#b3500a;--c2:#1a7f37;--c3:#8b3fc0;--c4:#a3195b;--c5:#5f6a00;--left:#a8b0b9;--odd:#c4161c}
@media(prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e3e8ee;--dim:#9aa6b2;--line:#333c46;--box:#1b2128;
--c0:#66aaff;--c1:#f5a15b;--c2:#5fd07f;--c3:#c99aff;--c4:#ff8dbd;--c5:#c9d35a;--left:#5c6773;--odd:#ff7b72}}
*{box-sizing:border-box}html{scroll-behavior:smooth}
body{margin:0 auto;padding:16px;max-width:1100px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{margin:0 0 4px;font-size:26px}h2{margin:32px 0 8px;font-size:19px;border-bottom:1px solid var(--line)}
h3{font-size:16px}
a{color:var(--c0)}p.none,.dim{color:var(--dim)}nav a{margin-right:12px;display:inline-block}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:8px 0}dt{color:var(--dim)}dd{margin:0}
.scroll{overflow-x:auto}.long{max-height:520px;overflow-y:auto}td.h{overflow-wrap:anywhere;min-width:13em}
table{border-collapse:collapse;width:100%;font-size:14px}
th{position:sticky;top:0;background:var(--bg)}
th,td{text-align:left;padding:3px 10px 3px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}td.t{white-space:nowrap}th,td{overflow-wrap:normal}td:last-child{min-width:8em}
tr:target,section:target h3{background:var(--box)}code{background:var(--box);padding:1px 4px;border-radius:3px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr));gap:16px}
figure{margin:8px 0;min-width:0}figcaption{font-weight:600;font-size:14px}svg{width:100%;height:auto;display:block}
.lane{fill:none;stroke-width:9}path.lane.c0{stroke:var(--c0)}path.lane.left{stroke:var(--left)}
.branch{fill:none;stroke:var(--left);stroke-width:2}.dots.left{stroke:var(--left)}
.grid{stroke:var(--line)}.grid.zero{stroke:var(--dim)}.tick{fill:var(--dim);font-size:16px}
polyline,.dots{fill:none;stroke-width:1.6;stroke-linejoin:round;pointer-events:none}
.dots{stroke-width:5;stroke-linecap:round}.wide{stroke-width:5;stroke-opacity:.45}circle.wide{fill-opacity:.45}
polyline.c0,.dots.c0{stroke:var(--c0)}polyline.c1,.dots.c1{stroke:var(--c1)}polyline.c2,.dots.c2{stroke:var(--c2)}polyline.c3,.dots.c3{stroke:var(--c3)}
polyline.c4,.dots.c4{stroke:var(--c4)}polyline.c5,.dots.c5{stroke:var(--c5)}polyline.left{stroke:var(--left)}
circle.c0,rect.c0{fill:var(--c0)}circle.c1,rect.c1{fill:var(--c1)}circle.c2,rect.c2{fill:var(--c2)}
circle.c3,rect.c3{fill:var(--c3)}circle.c4,rect.c4{fill:var(--c4)}circle.c5,rect.c5{fill:var(--c5)}
circle.left,rect.left{fill:var(--left)}.odd{fill:var(--odd);font-size:15px}
.mark{stroke:var(--dim);stroke-width:1.5;stroke-dasharray:3 3}.mark.spike,.mark.rollback,.mark.data{stroke:var(--odd)}
.reach{fill:transparent;stroke:transparent;stroke-width:9}rect.reach{stroke:none}
ul.legend{list-style:none;margin:2px 0;padding:0;font-size:13px}ul.legend li{display:inline-block;margin-right:14px}
ul.legend li::before{content:"";display:inline-block;width:14px;height:3px;margin-right:5px;
vertical-align:middle;background:currentColor}
li.c0{color:var(--c0)}li.c1{color:var(--c1)}li.c2{color:var(--c2)}li.c3{color:var(--c3)}li.c4{color:var(--c4)}
li.c5{color:var(--c5)}li.left,li.upright{color:var(--dim)}
ul.legend li.upright::before{width:0;height:12px;background:none;border-left:2px dashed currentColor}
li.spike,li.rollback,li.data{color:var(--odd)}
@media(max-width:600px){body{padding:12px;font-size:14px}.tick{font-size:22px}dl{grid-template-columns:1fr}dd{margin-bottom:6px}
td.t{white-space:normal}td.h{min-width:16em}}
"""
