/** How well the last weights tell the species of this site's penguins. Counts leave, no penguin does. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { confusion, examples } from "./model.mjs";
import { penguins, weightsOfTheRoundBefore } from "./site.mjs";

const weights = weightsOfTheRoundBefore();
if (!weights) throw new Error("there are no weights to evaluate: `needs` must name the last average");
const table = confusion(weights, examples(penguins()));
writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "confusion"), JSON.stringify(table));
