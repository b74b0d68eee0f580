/**
 * Holds the result of a run against the answer over the pooled data; exits 0 when they agree, 1 when not.
 *
 *   insitu runs show RUN -o json | node examples/check.mjs penguins|flights|federated
 */
import { text } from "node:stream/consumers";

const name = process.argv[2];
if (!["penguins", "flights", "federated"].includes(name)) {
  console.error("usage: insitu runs show RUN -o json | node examples/check.mjs penguins|flights|federated");
  process.exit(2);
}
const { default: demo } = await import(`./${name}/demo.mjs`);
const run = JSON.parse(await text(process.stdin));
const outputs = Object.fromEntries(
  run.steps.map((step) => [
    step.id,
    Object.fromEntries(
      Object.entries(step.outputs).map(([output, value]) => [output, value.text && JSON.parse(value.text)]),
    ),
  ]),
);
const { rows, difference, tolerance, equal } = await demo.compare(outputs);
console.table(rows);
console.log(`largest relative difference ${difference.toExponential(1)}, allowed ${tolerance}`);
process.exitCode = equal ? 0 : 1;
