/**
 * Writes pipeline.yaml: five rounds, each a step per site and one that averages, then an evaluation.
 *
 *   node examples/federated/generate-pipeline.mjs [--check]
 */
import { readFileSync, writeFileSync } from "node:fs";

const SITES = ["biscoe", "dream", "torgersen"];
const ROUNDS = 5;
const LOCAL_STEPS = 20;
const TARGET = new URL("pipeline.yaml", import.meta.url);

function atSites(prefix, step) {
  return SITES.map((site) => `  - id: ${prefix}-${site}\n    reads: [penguins-${site}]\n${step}`);
}

function round(number) {
  const needs = number > 1 ? `    needs: [average-${number - 1}]\n` : "";
  return [
    ...atSites(
      `train-${number}`,
      `${needs}    run: [node, train.mjs]
    files: [train.mjs, site.mjs, model.mjs]
    env: { LOCAL_STEPS: "${LOCAL_STEPS}" }
    outputs:
      weights: { type: json, maxBytes: 4096 }
    timeout: 1m
`,
    ),
    `  - id: average-${number}
    needs: [${SITES.map((site) => `train-${number}-${site}`).join(", ")}]
    environment: hq
    run: [node, average.mjs]
    files: [average.mjs, model.mjs]
    outputs:
      weights: { type: json, maxBytes: 4096 }
    timeout: 1m
`,
  ];
}

const steps = [
  ...Array.from({ length: ROUNDS }, (_, i) => round(i + 1)).flat(),
  ...atSites(
    "evaluate",
    `    needs: [average-${ROUNDS}]
    run: [node, evaluate.mjs]
    files: [evaluate.mjs, site.mjs, model.mjs]
    outputs:
      confusion: { type: json, maxBytes: 4096 }
    timeout: 1m
`,
  ),
  `  - id: summary
    needs: [${SITES.map((site) => `evaluate-${site}`).join(", ")}]
    environment: hq
    run: [node, summary.mjs]
    files: [summary.mjs]
    outputs:
      accuracy: { type: json, maxBytes: 4096 }
    timeout: 1m
`,
];

const text = `# yaml-language-server: $schema=../../docs/schema/pipeline.schema.json
#
# Written by generate-pipeline.mjs: change that one and run it again.
kind: pipeline
name: federated
description: Tells the species of penguins from four measurements, trained on three islands whose rows may not leave
owner: palmer-lter
steps:
${steps.join("\n")}`;

if (process.argv.includes("--check")) {
  if (readFileSync(TARGET, "utf8") !== text) {
    console.error(
      "examples/federated/pipeline.yaml is stale: run node examples/federated/generate-pipeline.mjs",
    );
    process.exitCode = 1;
  }
} else {
  writeFileSync(TARGET, text);
}
