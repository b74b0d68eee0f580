/** What `insitu dev` starts for this example. The shape is `Demo` in ../demo.ts. */
import { fileURLToPath } from "node:url";
import { comparison } from "../comparison.mjs";
import { pooledRegression, SITES, setUpPenguins } from "./setup.mjs";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

/** @type {import("../demo.ts").Demo} */
export default {
  name: "penguins",
  title: "How does body mass depend on flipper length, over three islands whose rows may not leave?",
  documents: [here("resources.yaml"), here("pipeline.yaml")],
  pipeline: "penguins",
  refused: here("../refused/wrong-move.yaml"),
  environments: {
    ...Object.fromEntries(
      SITES.map((site) => [site, { datasets: { [`penguins-${site}`]: "data/penguins.json" } }]),
    ),
    hq: { datasets: {} },
  },
  stepEnv: {},
  setUp: (directory) => setUpPenguins({ directory }),
  async compare(outputs) {
    const federated = outputs.merge.regression;
    const pooled = await pooledRegression();
    const row = (name, unit, key) => ({ name, unit, federated: federated[key], pooled: pooled[key] });
    return comparison(
      [
        row("slope", "g/mm", "slope"),
        row("intercept", "g", "intercept"),
        row("R²", "", "rSquared"),
        row("standard error of the slope", "g/mm", "slopeStandardError"),
        row("penguins", "", "n"),
      ],
      1e-9,
    );
  },
};
