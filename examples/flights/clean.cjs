/** Writes the site's flights without the records that cannot be: a delay of days, a flight of no distance. */
const { renameSync } = require("node:fs");
const { join } = require("node:path");
const { dataset, text, withDuckDb } = require("./duckdb.cjs");

withDuckDb(async (query) => {
  const raw = text(
    join(
      dataset((name) => !name.endsWith("_CLEAN")),
      "*.parquet",
    ),
  );
  const clean = join(
    dataset((name) => name.endsWith("_CLEAN")),
    "flights.parquet",
  );
  // Under another name first: a reader never sees half a file, also when this attempt is cut short.
  const unfinished = `${clean}.${process.env.INSITU_EPOCH}.new`;
  await query(
    `copy (select date, delay::smallint as delay, distance::smallint as distance, origin, destination
           from ${raw} where delay between -120 and 1440 and distance > 0)
     to ${text(unfinished)} (format parquet, compression zstd)`,
  );
  renameSync(unfinished, clean);
  const [{ before }] = await query(`select count(*)::int as before from ${raw}`);
  const [{ after }] = await query(`select count(*)::int as after from ${text(clean)}`);
  console.log(`${before} flights read, ${before - after} left out`);
});
