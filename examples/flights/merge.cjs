/** Adds up the sites' counts into one small table and a list of airports. */
const { readdirSync, readFileSync, writeFileSync } = require("node:fs");
const { join } = require("node:path");

const BUSY_FLIGHTS = 5000;
const inputs = process.env.INSITU_INPUT_DIR;
const sites = readdirSync(inputs).map((step) =>
  JSON.parse(readFileSync(join(inputs, step, "aggregate"), "utf8")),
);

const delays = new Map();
const airports = new Map();
for (const site of sites) {
  for (const [minutes, n] of site.delays) delays.set(minutes, (delays.get(minutes) ?? 0) + n);
  for (const [origin, flights, late] of site.airports) {
    const sum = airports.get(origin) ?? { origin, flights: 0, late: 0 };
    airports.set(origin, { origin, flights: sum.flights + flights, late: sum.late + late });
  }
}
const histogram = [...delays].sort(([a], [b]) => a - b);
const table = [...airports.values()]
  .map((airport) => ({ ...airport, lateShare: airport.late / airport.flights }))
  .sort((a, b) => b.lateShare - a.lateShare || a.origin.localeCompare(b.origin));
const flights = histogram.reduce((total, [, n]) => total + n, 0);

/** The smallest delay that at least this share of the flights does not exceed. */
function quantile(share) {
  let seen = 0;
  for (const [minutes, n] of histogram) {
    seen += n;
    if (seen >= share * flights) return minutes;
  }
  throw new Error("there are no flights");
}

const summary = {
  flights,
  meanDelay: histogram.reduce((total, [minutes, n]) => total + minutes * n, 0) / flights,
  lateShare: table.reduce((total, { late }) => total + late, 0) / flights,
  median: quantile(0.5),
  p90: quantile(0.9),
  p99: quantile(0.99),
  worst: table.filter((airport) => airport.flights >= BUSY_FLIGHTS).slice(0, 10),
};

writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "summary"), JSON.stringify(summary));
writeFileSync(
  "airports.csv",
  `origin,flights,late,late_share\n${table.map(({ origin, flights: n, late, lateShare }) => `${origin},${n},${late},${lateShare.toFixed(4)}`).join("\n")}\n`,
);
console.log(
  `${flights} flights of ${sites.length} sites, ${(summary.lateShare * 100).toFixed(1)} % of them late`,
);
