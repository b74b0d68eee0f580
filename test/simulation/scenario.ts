/** What a world is made of, drawn from its seed: sites, agents, pipelines, and how unkind it is. */
import { compile, type Plan } from "../../shared/engine/plan.ts";
import type { DisconnectSpec, StepSpec } from "../../shared/model/spec.ts";
import { pipelineSpec, stepSpec } from "../support/specs.ts";
import type { Chance } from "./chance.ts";
import type { Weather } from "./network.ts";

export interface Behaviour {
  /** Milliseconds that the step takes, on average. */
  takesMs: number;
  failShare: number;
}

export interface Pipeline {
  version: string;
  plan: Plan;
  behaviours: ReadonlyMap<string, Behaviour>;
  /** Where policy lets each step run. */
  allowed: ReadonlyMap<string, readonly string[]>;
}

/** Mean milliseconds between faults of a kind; infinite for never. */
export interface FaultRates {
  agentCrash: number;
  hostReboot: number;
  hostWipe: number;
  replicaCrash: number;
  /** A replica is asked to stop: it drains its gateway and hands its shards over. */
  replicaLeave: number;
  cut: number;
  reset: number;
  clockJump: number;
  diskFull: number;
  closedPolicy: number;
  cancel: number;
  /** A run is cancelled while an agent that holds an attempt of it reaches no replica. */
  cancelCutOff: number;
  /** An operator looks at what is cut off, and says what became of it. */
  resolve: number;
  /** Somebody who can write to NATS makes a report up. */
  forge: number;
  /** Somebody wants that an agent takes no work, or ends what it holds too; or that it may again. */
  cordon: number;
}

export interface AgentGiven {
  name: string;
  environment: string;
  slots: number;
  skewMs: number;
  /** Of a release that signs its reports. */
  signs: boolean;
}

export interface Scenario {
  environments: string[];
  agents: AgentGiven[];
  replicas: string[];
  pools: ReadonlyMap<string, number>;
  pipelines: Pipeline[];
  /** What each environment says of attempts whose agent is cut off. */
  disconnects: ReadonlyMap<string, DisconnectSpec>;
  /** When each run is asked for, and of which pipeline. */
  runs: { atMs: number; pipeline: Pipeline }[];
  offerTtlMs: number;
  /** Mean milliseconds for which what has crashed is down, and a link is cut. */
  downMs: number;
  cutMs: number;
  weather: Weather;
  rates: FaultRates;
  /** Share of appends after which the replica dies before it hears of them. */
  crashAtAppend: number;
  faultsForMs: number;
}

/** Of the control plane, kept within a few seconds of each other by their operators once nothing is wrong. */
export const AGENT_SKEW_MAX_MS = 3_600_000;

export function drawScenario(chance: Chance, replicasMax: number): Scenario {
  const environments = Array.from({ length: chance.int(1, 3) }, (_, index) => `site-${index + 1}`);
  const agents = Array.from({ length: chance.int(environments.length, 4) }, (_, index) => ({
    name: `${environments[index % environments.length]!}/agent-${index + 1}`,
    environment: environments[index % environments.length]!,
    slots: chance.int(1, 3),
    skewMs: chance.happens(0.5) ? chance.int(-AGENT_SKEW_MAX_MS, AGENT_SKEW_MAX_MS) : 0,
    signs: chance.happens(0.8),
  }));
  const pools = new Map(
    Array.from({ length: chance.int(0, 2) }, (_, index) => [`pool-${index + 1}`, chance.int(1, 2)] as const),
  );
  const pipelines = Array.from({ length: chance.int(1, 2) }, (_, index) =>
    drawPipeline(chance, index + 1, environments, [...pools.keys()]),
  );
  const faultsForMs = chance.int(10_000, 60_000);
  return {
    environments,
    agents,
    replicas: Array.from({ length: chance.int(1, replicasMax) }, (_, index) => `replica-${index + 1}`),
    pools,
    pipelines,
    disconnects: new Map(
      environments.flatMap((name) => (chance.happens(0.2) ? [[name, drawDisconnect(chance)] as const] : [])),
    ),
    runs: Array.from({ length: chance.int(1, 4) }, () => ({
      atMs: chance.int(0, Math.floor(faultsForMs / 2)),
      pipeline: chance.pick(pipelines),
    })),
    offerTtlMs: chance.pick([8_000, 30_000, 120_000]),
    downMs: chance.pick([3_000, 12_000]),
    cutMs: chance.pick([6_000, 20_000]),
    weather: drawWeather(chance),
    rates: drawRates(chance),
    crashAtAppend: chance.happens(0.3) ? chance.next() * 0.05 : 0,
    faultsForMs,
  };
}

function drawWeather(chance: Chance): Weather {
  const some = (most: number): number => (chance.happens(0.5) ? chance.next() * most : 0);
  return {
    drop: some(0.15),
    duplicate: some(0.2),
    delayMaxMs: chance.pick([3, 30, 300, 3_000]),
    straggle: some(0.02),
  };
}

function drawRates(chance: Chance): FaultRates {
  const often = (shortestMs: number): number =>
    chance.happens(0.5) ? shortestMs * (1 + 10 * chance.next()) : Number.POSITIVE_INFINITY;
  return {
    agentCrash: often(4_000),
    hostReboot: often(8_000),
    hostWipe: often(15_000),
    replicaCrash: often(4_000),
    replicaLeave: often(6_000),
    cut: often(4_000),
    reset: often(2_000),
    clockJump: often(4_000),
    diskFull: often(8_000),
    closedPolicy: often(10_000),
    cancel: often(20_000),
    cancelCutOff: often(12_000),
    resolve: often(6_000),
    forge: often(3_000),
    cordon: often(5_000),
  };
}

function drawPipeline(
  chance: Chance,
  number: number,
  environments: readonly string[],
  pools: readonly string[],
): Pipeline {
  const steps = Array.from({ length: chance.int(2, 8) }, (_, index) => drawStep(chance, index, pools));
  const timeoutMs = chance.happens(0.1) ? chance.int(5_000, 60_000) : null;
  const spec = pipelineSpec(`pipeline-${number}`, steps, { timeoutMs });
  return {
    version: `version-${number}`,
    plan: compile(spec),
    behaviours: new Map(
      steps.map(({ id }) => [
        id,
        {
          takesMs: chance.pick([0, 100, 1_000, 5_000, 20_000]),
          failShare: chance.happens(0.3) ? chance.next() * 0.7 : 0,
        },
      ]),
    ),
    allowed: new Map(
      steps.map(({ id }) => [id, chance.happens(0.03) ? [] : chance.some(environments, 0.6)] as const),
    ),
  };
}

function drawDisconnect(chance: Chance): DisconnectSpec {
  return { keepMs: chance.int(0, 30_000), then: chance.pick(["reassign", "wait", "fail"] as const) };
}

function drawStep(chance: Chance, index: number, pools: readonly string[]): StepSpec {
  const needs = new Set<string>();
  for (let tries = chance.int(0, 3); tries > 0 && index > 0; tries--)
    needs.add(`s${chance.int(0, index - 1)}`);
  return stepSpec(`s${index}`, {
    needs: [...needs],
    retry: {
      max: chance.pick([0, 0, 1, 3]),
      backoffMs: chance.int(0, 2_000),
      factor: 2,
      backoffMaxMs: 8_000,
      jitter: chance.next(),
    },
    unplaceableMs: chance.int(5_000, 60_000),
    pools: chance.happens(0.3) ? pools.filter(() => chance.happens(0.6)) : [],
    ...(chance.happens(0.25) ? { disconnect: drawDisconnect(chance) } : {}),
    ...(chance.happens(0.15) ? { once: true } : {}),
  });
}
