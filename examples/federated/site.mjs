/** What a step at a site reads: its penguins, and the weights that hq sent. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

export function penguins() {
  const dataset = Object.entries(process.env).find(([name]) => name.startsWith("INSITU_DATASET_"));
  if (!dataset) throw new Error("the step reads no dataset: give it one in `reads`");
  return JSON.parse(readFileSync(dataset[1], "utf8"));
}

/** Null in the first round. */
export function weightsOfTheRoundBefore() {
  const directory = process.env.INSITU_INPUT_DIR;
  const step =
    directory && existsSync(directory) && readdirSync(directory).find((name) => name.startsWith("average-"));
  return step ? JSON.parse(readFileSync(join(directory, step, "weights"), "utf8")) : null;
}
