/**
 * What hq may know of the site's flights: whole numbers, so that merging them loses nothing.
 *
 * The delays go as a histogram by the minute, because quantiles cannot be merged and counts can.
 */
const { writeFileSync } = require("node:fs");
const { join } = require("node:path");
const { dataset, text, withDuckDb } = require("./duckdb.cjs");

const late = Number(process.env.INSITU_PARAM_LATE);

withDuckDb(async (query) => {
  const flights = text(
    join(
      dataset(() => true),
      "flights.parquet",
    ),
  );
  const airports = await query(
    `select origin, count(*)::int as flights, count(*) filter (delay > ${late})::int as late
     from ${flights} group by origin order by origin`,
  );
  const delays = await query(
    `select delay::int as minutes, count(*)::int as flights from ${flights} group by minutes order by minutes`,
  );
  const aggregate = {
    airports: airports.map(({ origin, flights: n, late: lateOnes }) => [origin, n, lateOnes]),
    delays: delays.map(({ minutes, flights: n }) => [minutes, n]),
  };
  writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "aggregate"), JSON.stringify(aggregate));
  console.log(`${airports.length} airports, ${delays.length} different delays`);
});
