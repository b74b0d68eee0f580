/**
 * Sufficient statistics for the regression of body mass on flipper length, from the rows of this site.
 *
 * Six numbers leave the site. Sums of squares are taken about the site's own means, in two passes: taken about
 * zero, their differences would lose half the digits that the merge needs.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const dataset = Object.entries(process.env).find(([name]) => name.startsWith("INSITU_DATASET_"));
if (!dataset) throw new Error("the step reads no dataset: give it one in `reads`");
const all = JSON.parse(readFileSync(dataset[1], "utf8"));
const rows = all
  .map((penguin) => ({ x: penguin["Flipper Length (mm)"], y: penguin["Body Mass (g)"] }))
  .filter(({ x, y }) => typeof x === "number" && typeof y === "number");

const sum = (of) => rows.reduce((total, row) => total + of(row), 0);
const n = rows.length;
if (n === 0) throw new Error("no row has both measurements");
const meanX = sum(({ x }) => x) / n;
const meanY = sum(({ y }) => y) / n;

const statistics = {
  n,
  leftOut: all.length - n,
  meanX,
  meanY,
  sxx: sum(({ x }) => (x - meanX) ** 2),
  syy: sum(({ y }) => (y - meanY) ** 2),
  sxy: sum(({ x, y }) => (x - meanX) * (y - meanY)),
};

writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "statistics"), JSON.stringify(statistics));
console.log(`${all.length} penguins read, ${statistics.leftOut} without both measurements left out`);
