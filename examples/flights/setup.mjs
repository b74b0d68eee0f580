/** Gives each of two sites its months of the three million flights, and computes the answers over the whole file. */
import { mkdir, readdir, rename, stat } from "node:fs/promises";
import { join } from "node:path";
import { DuckDBInstance } from "@duckdb/node-api";
import { vegaData } from "../vega-data.mjs";

const SOURCE = vegaData("flights-3m.parquet");

/** The file holds January to June 2001, and the first minute of July. */
export const MONTHS = { east: [1, 3, 5, 7], west: [2, 4, 6] };

/**
 * Writes `<directory>/<site>/data/flights/2001-<month>.parquet`. Idempotent: a month that is there is left.
 *
 * @param {{ directory: string }} options
 * @returns {Promise<{ environment: string, dataset: string, rows: number, bytes: number }[]>}
 */
export async function setUpFlights({ directory }) {
  return withDuckDb(async (query) => {
    const sites = [];
    for (const [site, months] of Object.entries(MONTHS)) {
      const flights = join(directory, site, "data", "flights");
      await mkdir(flights, { recursive: true });
      // What a step of the site writes. It is a dataset of its own, so its place is there before the step runs.
      await mkdir(join(directory, site, "data", "clean"), { recursive: true });
      for (const month of months) {
        const path = join(flights, `2001-${String(month).padStart(2, "0")}.parquet`);
        if (await stat(path).catch(() => null)) continue;
        await query(
          `copy (from ${text(SOURCE)} where month(date) = ${month}) to ${text(`${path}.new`)} (format parquet)`,
        );
        await rename(`${path}.new`, path);
      }
      const [count] = await query(`select count(*)::int as n from ${text(join(flights, "*.parquet"))}`);
      sites.push({
        environment: site,
        dataset: `flights-${site}`,
        rows: count.n,
        bytes: await bytesIn(flights),
      });
    }
    return sites;
  });
}

/** The same questions put to the whole file at once, in the words of SQL alone. */
export async function pooledSummary() {
  return withDuckDb(async (query) => {
    const flights = `(from ${text(SOURCE)} where delay between -120 and 1440 and distance > 0)`;
    const [all] = await query(
      `select count(*)::double as flights, avg(delay) as "meanDelay", avg((delay > 15)::int) as "lateShare",
              quantile_disc(delay, 0.5)::double as median, quantile_disc(delay, 0.9)::double as p90,
              quantile_disc(delay, 0.99)::double as p99 from ${flights}`,
    );
    const [worst] = await query(
      `select origin, avg((delay > 15)::int) as "lateShare" from ${flights} group by origin having count(*) >= 5000
       order by "lateShare" desc, origin limit 1`,
    );
    return { ...all, worst };
  });
}

async function withDuckDb(use) {
  const instance = await DuckDBInstance.create(":memory:");
  const connection = await instance.connect();
  try {
    return await use(async (sql) => (await connection.runAndReadAll(sql)).getRowObjectsJS());
  } finally {
    connection.closeSync();
    instance.closeSync();
  }
}

function text(value) {
  return `'${value.replaceAll("'", "''")}'`;
}

async function bytesIn(directory) {
  const sizes = await Promise.all(
    (await readdir(directory)).map(async (name) => (await stat(join(directory, name))).size),
  );
  return sizes.reduce((total, size) => total + size, 0);
}
