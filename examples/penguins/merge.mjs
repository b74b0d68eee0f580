/** Merges the statistics of the sites into the regression over all of them, and writes a report. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { report } from "./report.mjs";

const inputs = process.env.INSITU_INPUT_DIR;
const sites = readdirSync(inputs)
  .sort()
  .map((step) => ({
    site: step.replace("statistics-", ""),
    ...JSON.parse(readFileSync(join(inputs, step, "statistics"), "utf8")),
  }));
if (sites.length === 0) throw new Error("no site's statistics came in");

/**
 * Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
 * (Stanford STAN-CS-79-773, 1979), equation 2.1, and its like for the products.
 */
function combine(a, b) {
  const n = a.n + b.n;
  const dx = b.meanX - a.meanX;
  const dy = b.meanY - a.meanY;
  const weight = (a.n * b.n) / n;
  return {
    n,
    meanX: a.meanX + (dx * b.n) / n,
    meanY: a.meanY + (dy * b.n) / n,
    sxx: a.sxx + b.sxx + dx * dx * weight,
    syy: a.syy + b.syy + dy * dy * weight,
    sxy: a.sxy + b.sxy + dx * dy * weight,
  };
}

const { n, meanX, meanY, sxx, syy, sxy } = sites.reduce(combine);
const slope = sxy / sxx;
const regression = {
  n,
  slope,
  intercept: meanY - slope * meanX,
  rSquared: (sxy * sxy) / (sxx * syy),
  slopeStandardError: Math.sqrt((syy - slope * sxy) / (n - 2) / sxx),
};

writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "regression"), JSON.stringify(regression));
writeFileSync("report.html", report({ sites, regression, runId: process.env.INSITU_RUN_ID }));
console.log(`mass = ${regression.intercept.toFixed(1)} g + ${slope.toFixed(3)} g/mm × flipper length`);
console.log(`R² ${regression.rSquared.toFixed(4)} over ${n} penguins of ${sites.length} sites`);
