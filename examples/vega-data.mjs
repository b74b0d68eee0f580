/** Files of the npm package `vega-datasets`. Its `exports` name its entry point alone, so the path goes from there. */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

export function vegaData(name) {
  return join(dirname(createRequire(import.meta.url).resolve("vega-datasets")), "..", "data", name);
}
