/** Runs an example's steps as plain processes, one after another, with what a site would give them. */
import { execFile } from "node:child_process";
import { copyFile, mkdir, readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { promisify } from "node:util";
import { parseAllDocuments } from "yaml";
import type { Demo } from "./demo.ts";

const run = promisify(execFile);

interface AuthoredStep {
  id: string;
  needs?: string[];
  reads?: string[];
  writes?: string[];
  environment?: string;
  run: string[];
  files?: string[];
  env?: Record<string, string>;
  outputs?: Record<string, { maxBytes: number }>;
  artifacts?: Record<string, string>;
}

interface AuthoredPipeline {
  kind: string;
  name: string;
  params?: Record<string, { default: unknown }>;
  steps: AuthoredStep[];
}

/** @returns the outputs by step and name, parsed */
export async function runLocally(
  demo: Demo,
  directory: string,
): Promise<Record<string, Record<string, unknown>>> {
  const { pipeline, file } = await pipelineOf(demo);
  const outputs: Record<string, Record<string, unknown>> = {};
  for (const step of pipeline.steps) {
    const place = join(directory, "steps", step.id);
    const [work, out, inputs] = [join(place, "work"), join(place, "out"), join(place, "in")];
    await Promise.all([work, out, inputs].map((path) => mkdir(path, { recursive: true })));
    for (const name of step.files ?? []) await copyFile(join(dirname(file), name), join(work, name));
    for (const need of step.needs ?? []) {
      for (const name of Object.keys(outputs[need] ?? {})) {
        await mkdir(join(inputs, need), { recursive: true });
        await copyFile(join(directory, "steps", need, "out", name), join(inputs, need, name));
      }
    }
    const [program = "", ...args] = step.run;
    await run(program, args, { cwd: work, env: stepEnv({ demo, pipeline, step, directory, out, inputs }) });
    for (const artifact of Object.values(step.artifacts ?? {})) await readFile(join(work, artifact));
    const own: Record<string, unknown> = {};
    outputs[step.id] = own;
    for (const [name, { maxBytes }] of Object.entries(step.outputs ?? {})) {
      const text = await readFile(join(out, name), "utf8");
      if (Buffer.byteLength(text) > maxBytes)
        throw new Error(`${step.id}/${name} is larger than ${maxBytes} bytes`);
      own[name] = JSON.parse(text);
    }
  }
  return outputs;
}

async function pipelineOf(demo: Demo): Promise<{ pipeline: AuthoredPipeline; file: string }> {
  for (const file of demo.documents) {
    for (const document of parseAllDocuments(await readFile(file, "utf8"))) {
      const value = document.toJS() as AuthoredPipeline;
      if (value.kind === "pipeline" && value.name === demo.pipeline) return { pipeline: value, file };
    }
  }
  throw new Error(`no document of ${demo.name} holds the pipeline ${demo.pipeline}`);
}

function stepEnv(given: {
  demo: Demo;
  pipeline: AuthoredPipeline;
  step: AuthoredStep;
  directory: string;
  out: string;
  inputs: string;
}): Record<string, string> {
  const { demo, pipeline, step, directory, out, inputs } = given;
  const env: Record<string, string> = {
    PATH: dirname(process.execPath),
    ...demo.stepEnv,
    ...step.env,
    INSITU_OUTPUT_DIR: out,
    INSITU_INPUT_DIR: inputs,
    INSITU_RUN_ID: "local",
    INSITU_EPOCH: "1",
  };
  for (const [name, { default: value }] of Object.entries(pipeline.params ?? {})) {
    env[`INSITU_PARAM_${shout(name)}`] = String(value);
  }
  for (const dataset of [...(step.reads ?? []), ...(step.writes ?? [])]) {
    const holder = Object.entries(demo.environments).find(([, { datasets }]) => dataset in datasets);
    if (!holder) throw new Error(`no site of ${demo.name} holds ${dataset}`);
    env[`INSITU_DATASET_${shout(dataset)}`] = join(directory, holder[0], holder[1].datasets[dataset] ?? "");
  }
  return env;
}

function shout(name: string): string {
  return name.toUpperCase().replaceAll("-", "_");
}
