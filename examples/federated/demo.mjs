/** What `insitu dev --example federated` starts. The shape is `Demo` in ../demo.ts. */
import { fileURLToPath } from "node:url";
import { comparison } from "../comparison.mjs";
import penguins from "../penguins/demo.mjs";
import { readPenguins, SITES } from "../penguins/setup.mjs";
import { confusion, examples, train, zeroWeights } from "./model.mjs";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
/** As many as a site makes in all its rounds. */
const CENTRAL_STEPS = 100;

/** @type {import("../demo.ts").Demo} */
export default {
  name: "federated",
  title: "Which species is a penguin, learned on three islands whose rows may not leave?",
  documents: [here("../penguins/resources.yaml"), here("pipeline.yaml")],
  pipeline: "federated",
  refused: null,
  environments: penguins.environments,
  stepEnv: {},
  setUp: penguins.setUp,
  /** Against a model trained on all rows in one place. Averaged weights are another model, so only its skill is compared. */
  async compare(outputs) {
    const { all, sites } = outputs.summary.accuracy;
    const everyone = await readPenguins();
    const weights = train(zeroWeights(), examples(everyone), CENTRAL_STEPS);
    const central = (rows) => {
      const table = confusion(weights, examples(rows));
      return table.reduce((sum, row, k) => sum + row[k], 0) / table.flat().reduce((a, b) => a + b, 0);
    };
    return comparison(
      [
        { name: "accuracy over all islands", unit: "", federated: all.accuracy, pooled: central(everyone) },
        ...SITES.map((site) => ({
          name: `accuracy on ${site}`,
          unit: "",
          federated: sites[site].accuracy,
          pooled: central(everyone.filter((penguin) => penguin.Island.toLowerCase() === site)),
        })),
      ],
      0.02,
    );
  },
};
