/** The report as one self-contained page: the answer, a drawing, and what each site gave. */

const WIDTH = 640;
const HEIGHT = 320;
const MARGIN = 52;

export function report({ sites, regression, runId }) {
  const { slope, intercept, rSquared, slopeStandardError, n } = regression;
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Body mass and flipper length</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 42rem; margin: 3rem auto; padding: 0 1rem; }
  h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin-top: 2rem; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
  th:first-child, td:first-child { text-align: left; }
  svg { width: 100%; height: auto; } text { fill: currentColor; font-size: 13px; }
  footer { margin-top: 2rem; opacity: .7; font-size: .875rem; }
</style>
<h1>A penguin with a flipper longer by 1&nbsp;mm weighs ${slope.toFixed(1)}&nbsp;g more</h1>
<p>mass = ${intercept.toFixed(1)} g + ${slope.toFixed(3)} g/mm × flipper length.
   Standard error of the slope ${slopeStandardError.toFixed(3)} g/mm, R² ${rSquared.toFixed(4)}, ${n} penguins.</p>
${drawing(sites, regression)}
<h2>What each site gave</h2>
<table>
<tr><th>site</th><th>penguins</th><th>left out</th><th>mean flipper, mm</th><th>mean mass, g</th></tr>
${sites.map(row).join("\n")}
</table>
<footer>Computed from sufficient statistics. No row left its site. Run ${escapeHtml(runId ?? "")}.</footer>
</html>
`;
}

function row({ site, n, leftOut, meanX, meanY }) {
  return `<tr><td>${escapeHtml(site)}</td><td>${n}</td><td>${leftOut}</td><td>${meanX.toFixed(1)}</td><td>${meanY.toFixed(0)}</td></tr>`;
}

/** The line over two standard deviations, and each site's mean with an area that goes with its penguins. */
function drawing(sites, { slope, intercept, n }) {
  const spread = Math.sqrt(sites.reduce((total, { sxx }) => total + sxx, 0) / n);
  const xs = sites.map(({ meanX }) => meanX);
  const left = Math.min(...xs) - 1.5 * spread;
  const right = Math.max(...xs) + 1.5 * spread;
  const [bottom, top] = [intercept + slope * left, intercept + slope * right];
  const x = (value) => MARGIN + ((value - left) / (right - left)) * (WIDTH - 2 * MARGIN);
  const y = (value) => HEIGHT - MARGIN - ((value - bottom) / (top - bottom)) * (HEIGHT - 2 * MARGIN);
  const points = sites.map(
    (
      site,
    ) => `<circle cx="${x(site.meanX).toFixed(1)}" cy="${y(site.meanY).toFixed(1)}" r="${(Math.sqrt(site.n) * 0.9).toFixed(1)}" fill="#2a78d6" fill-opacity=".55"/>
<text x="${(x(site.meanX) + 14).toFixed(1)}" y="${(y(site.meanY) + 18).toFixed(1)}">${escapeHtml(site.site)}</text>`,
  );
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="The fitted line with the mean of each site">
<path d="M${MARGIN} ${MARGIN / 2}V${HEIGHT - MARGIN}H${WIDTH - MARGIN}" fill="none" stroke="currentColor" stroke-opacity=".4"/>
<path d="M${x(left)} ${y(bottom)}L${x(right)} ${y(top)}" stroke="#2a78d6" stroke-width="2.5"/>
${points.join("\n")}
<text x="${MARGIN}" y="${HEIGHT - MARGIN + 18}">${left.toFixed(0)} mm</text>
<text x="${WIDTH - MARGIN}" y="${HEIGHT - MARGIN + 18}" text-anchor="end">${right.toFixed(0)} mm</text>
<text x="${WIDTH / 2}" y="${HEIGHT - MARGIN + 36}" text-anchor="middle">flipper length</text>
<text x="${MARGIN - 6}" y="${y(bottom)}" text-anchor="end">${(bottom / 1000).toFixed(1)} kg</text>
<text x="${MARGIN - 6}" y="${y(top) + 5}" text-anchor="end">${(top / 1000).toFixed(1)} kg</text>
</svg>`;
}

function escapeHtml(text) {
  return text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
}
