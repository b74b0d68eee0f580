/**
 * DuckDB for a step. CommonJS, because the site offers its packages by NODE_PATH, which ES modules do not read.
 */
const { DuckDBInstance } = require("@duckdb/node-api");

/** Calls `use(query)`, where `query(sql)` gives rows as objects. One thread: a site runs several steps at once. */
async function withDuckDb(use) {
  const instance = await DuckDBInstance.create(":memory:", { threads: "1" });
  const connection = await instance.connect();
  try {
    return await use(async (sql) => (await connection.runAndReadAll(sql)).getRowObjectsJS());
  } finally {
    connection.closeSync();
    instance.closeSync();
  }
}

/** The path of the one dataset of this step whose name ends so, as an SQL string. */
function dataset(isWanted) {
  const found = Object.entries(process.env).filter(
    ([name]) => name.startsWith("INSITU_DATASET_") && isWanted(name),
  );
  if (found.length !== 1) throw new Error(`expected one dataset, found ${found.length}`);
  return found[0][1];
}

function text(value) {
  return `'${value.replaceAll("'", "''")}'`;
}

module.exports = { withDuckDb, dataset, text };
