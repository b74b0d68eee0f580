/** hq's part of a round: the mean of the sites' weights, each counted by its penguins. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { average } from "./model.mjs";

const inputs = process.env.INSITU_INPUT_DIR;
const parts = readdirSync(inputs)
  .sort()
  .map((step) => JSON.parse(readFileSync(join(inputs, step, "weights"), "utf8")));
writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "weights"), JSON.stringify(average(parts)));
console.log(`averaged the weights of ${parts.length} sites`);
