/** One site's part of a round: takes the weights of the round before, trains on its own rows, gives new weights. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { examples, train, zeroWeights } from "./model.mjs";
import { penguins, weightsOfTheRoundBefore } from "./site.mjs";

const rows = examples(penguins());
const weights = train(weightsOfTheRoundBefore() ?? zeroWeights(), rows, Number(process.env.LOCAL_STEPS));
writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "weights"), JSON.stringify({ n: rows.length, weights }));
console.log(`trained on ${rows.length} penguins`);
