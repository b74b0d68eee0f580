/** Starts and cancels runs on behalf of people and programs. */
import { InsituError } from "../../shared/errors.ts";
import { unknownName } from "../../shared/model/nearest.ts";
import type { ParamValue, PipelineSpec } from "../../shared/model/spec.ts";
import type { RunSummary } from "../api/schemas.ts";
import type { ResourceService, RunCommands } from "../api/services.ts";
import { resolveParams } from "./params.ts";
import type { RepeatSeed } from "./ports.ts";
import type { RunRouter } from "./run-router.ts";
import type { StepResolution } from "./run-service.ts";

export interface RunReads {
  summary(runId: string): RunSummary | undefined;
  waitFor(seq: number): Promise<void>;
}

export class Commands implements RunCommands {
  readonly #runs: Pick<RunRouter, "create" | "cancel" | "resolve">;
  readonly #reads: RunReads;
  readonly #resources: ResourceService;

  constructor(
    runs: Pick<RunRouter, "create" | "cancel" | "resolve">,
    reads: RunReads,
    resources: ResourceService,
  ) {
    this.#runs = runs;
    this.#reads = reads;
    this.#resources = resources;
  }

  async start(request: {
    pipeline: string;
    version?: string;
    params: Record<string, ParamValue>;
    by: string;
    seed?: RepeatSeed;
  }): Promise<RunSummary> {
    const { version, spec } = await this.#pipeline(request.pipeline, request.version);
    const params = resolveParams(spec, request.params);
    const { runId, seq } = await this.#runs.create({ version, params, by: request.by }, request.seed);
    await this.#reads.waitFor(seq);
    return this.#summary(runId);
  }

  async cancel(runId: string, request: { by: string; reason: string }): Promise<RunSummary> {
    this.#unfinished(runId);
    const { seq } = await this.#runs.cancel(runId, request.by, request.reason);
    await this.#reads.waitFor(seq);
    return this.#summary(runId);
  }

  async resolve(request: StepResolution): Promise<RunSummary> {
    this.#unfinished(request.runId);
    const { seq } = await this.#runs.resolve(request);
    await this.#reads.waitFor(seq);
    return this.#summary(request.runId);
  }

  #unfinished(runId: string): void {
    const before = this.#reads.summary(runId);
    if (!before) throw new InsituError("not-found", `there is no run ${runId}; GET /v1/runs lists them`);
    if (before.finishedAtMs !== null)
      throw new InsituError("run.terminal", `run ${runId} has ended already: ${before.status}`);
  }

  async #pipeline(
    name: string,
    wanted: string | undefined,
  ): Promise<{ version: string; spec: PipelineSpec }> {
    const stored = this.#resources.get("pipeline", name);
    const version = wanted ?? stored?.version;
    if (!stored || !version) {
      const known = this.#resources.list("pipeline").map((pipeline) => pipeline.name);
      throw new InsituError("not-found", unknownName({ kind: "pipeline", name, known }));
    }
    const spec = await this.#resources.version(version);
    if (spec?.name !== name) {
      throw new InsituError("not-found", `pipeline ${name} has no version ${version}`);
    }
    return { version, spec };
  }

  #summary(runId: string): RunSummary {
    const summary = this.#reads.summary(runId);
    if (!summary) throw new InsituError("internal", `run ${runId} is durable and not visible`);
    return summary;
  }
}
