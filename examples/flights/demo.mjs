/** What `insitu dev --example flights` starts. The shape is `Demo` in ../demo.ts. */
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { comparison } from "../comparison.mjs";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const site = (name) => ({
  datasets: { [`flights-${name}`]: "data/flights", [`flights-${name}-clean`]: "data/clean" },
});

/** The node_modules that holds DuckDB, which the steps need: a site's own installation, in earnest. */
const packages = createRequire(import.meta.url)
  .resolve("@duckdb/node-api")
  .replace(/(node_modules)[\\/]@duckdb[\\/].*$/, "$1");

/** @type {import("../demo.ts").Demo} */
export default {
  name: "flights",
  title: "How late do three million flights leave, when each exchange keeps its own months?",
  documents: [here("resources.yaml"), here("pipeline.yaml")],
  pipeline: "flights",
  refused: null,
  environments: { east: site("east"), west: site("west"), hq: { datasets: {} } },
  stepEnv: { NODE_PATH: packages },
  async setUp(directory) {
    // Late, so that the other examples do not load DuckDB.
    const { setUpFlights } = await import("./setup.mjs");
    return setUpFlights({ directory });
  },
  async compare(outputs) {
    const { pooledSummary } = await import("./setup.mjs");
    const federated = outputs.merge.summary;
    const pooled = await pooledSummary();
    const row = (name, unit, key) => ({ name, unit, federated: federated[key], pooled: pooled[key] });
    return comparison(
      [
        row("flights", "", "flights"),
        row("mean delay", "min", "meanDelay"),
        row("share of late flights", "", "lateShare"),
        row("median delay", "min", "median"),
        row("90th percentile", "min", "p90"),
        row("99th percentile", "min", "p99"),
        {
          name: `late at ${pooled.worst.origin}, the worst of the busy airports`,
          unit: "",
          federated:
            federated.worst.find(({ origin }) => origin === pooled.worst.origin)?.lateShare ?? Number.NaN,
          pooled: pooled.worst.lateShare,
        },
      ],
      1e-9,
    );
  },
};
