/** The accuracy at each site and over all, from the sites' counts. */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const inputs = process.env.INSITU_INPUT_DIR;
const tables = readdirSync(inputs)
  .sort()
  .map((step) => [
    step.replace("evaluate-", ""),
    JSON.parse(readFileSync(join(inputs, step, "confusion"), "utf8")),
  ]);

function count(table) {
  const n = table.flat().reduce((a, b) => a + b, 0);
  const correct = table.reduce((sum, row, k) => sum + row[k], 0);
  return { n, correct, accuracy: correct / n };
}

const all = tables
  .map(([, table]) => table)
  .reduce((a, b) => a.map((row, i) => row.map((n, j) => n + b[i][j])));
const accuracy = {
  all: count(all),
  sites: Object.fromEntries(tables.map(([site, table]) => [site, count(table)])),
  confusion: all,
};
writeFileSync(join(process.env.INSITU_OUTPUT_DIR, "accuracy"), JSON.stringify(accuracy));
console.log(`${accuracy.all.correct} of ${accuracy.all.n} penguins told right`);
