/** Splits the Palmer penguins by island, one file per site, and computes the answer over the pooled file. */
import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { vegaData } from "../vega-data.mjs";

const SOURCE = vegaData("penguins.json");

export const SITES = ["biscoe", "dream", "torgersen"];

/**
 * Writes `<directory>/<site>/data/penguins.json` for each site. Idempotent: a file that is right already is left.
 *
 * @param {{ directory: string }} options
 * @returns {Promise<{ environment: string, dataset: string, rows: number, bytes: number }[]>}
 */
export async function setUpPenguins({ directory }) {
  const penguins = await readPenguins();
  return Promise.all(
    SITES.map(async (site) => {
      const rows = penguins.filter((penguin) => penguin.Island.toLowerCase() === site);
      const text = `[\n${rows.map((row) => JSON.stringify(row)).join(",\n")}\n]\n`;
      await writeAtomically(join(directory, site, "data", "penguins.json"), text);
      return {
        environment: site,
        dataset: `penguins-${site}`,
        rows: rows.length,
        bytes: Buffer.byteLength(text),
      };
    }),
  );
}

/**
 * Least squares of body mass on flipper length over the whole file, the textbook way: means, slope, then the
 * residual of each row. Shares no formula with the merge of the sites beyond the definition itself.
 */
export async function pooledRegression() {
  const rows = (await readPenguins())
    .map((penguin) => ({ x: penguin["Flipper Length (mm)"], y: penguin["Body Mass (g)"] }))
    .filter(({ x, y }) => typeof x === "number" && typeof y === "number");
  const n = rows.length;
  const meanX = sum(rows.map(({ x }) => x)) / n;
  const meanY = sum(rows.map(({ y }) => y)) / n;
  const sxx = sum(rows.map(({ x }) => (x - meanX) ** 2));
  const slope = sum(rows.map(({ x, y }) => (x - meanX) * (y - meanY))) / sxx;
  const intercept = meanY - slope * meanX;
  const residual = sum(rows.map(({ x, y }) => (y - intercept - slope * x) ** 2));
  const total = sum(rows.map(({ y }) => (y - meanY) ** 2));
  return {
    n,
    slope,
    intercept,
    rSquared: 1 - residual / total,
    slopeStandardError: Math.sqrt(residual / (n - 2) / sxx),
  };
}

export async function readPenguins() {
  return JSON.parse(await readFile(SOURCE, "utf8"));
}

/** Neumaier's compensated sum: the order of the rows does not show in the result. */
function sum(values) {
  let total = 0;
  let lost = 0;
  for (const value of values) {
    const next = total + value;
    lost += Math.abs(total) >= Math.abs(value) ? total - next + value : value - next + total;
    total = next;
  }
  return total + lost;
}

async function writeAtomically(path, text) {
  const there = await stat(path).catch(() => null);
  if (there?.size === Buffer.byteLength(text) && (await readFile(path, "utf8")) === text) return;
  await mkdir(dirname(path), { recursive: true });
  await writeFile(`${path}.new`, text);
  await rename(`${path}.new`, path);
}
