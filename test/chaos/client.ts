/** The API as a stubborn client uses it: each replica in turn, until one answers. */
import type { LogLine, RunDetail } from "../../control-plane/api/schemas.ts";
import type { RunEventBatch } from "../../shared/engine/events.ts";
import { systemClock } from "../../shared/system.ts";
import type { SeenBatch } from "./history.ts";
import type { LogPiece } from "./log-check.ts";

const CALL_MAX_MS = 6_000;
const AGAIN_MS = 100;
/** A stream that says nothing for longer, not even that it is alive, is left for another replica. */
const SILENT_MAX_MS = 8_000;

export interface Endpoint {
  name: string;
  url: string;
}

class Refused extends Error {
  readonly status: number;
  constructor(status: number, text: string) {
    super(`${status} ${text}`);
    this.status = status;
  }
}

export class Client {
  readonly #endpoints: readonly Endpoint[];
  readonly #token: string;
  #turn = 0;

  constructor(endpoints: readonly Endpoint[], token: string) {
    this.#endpoints = endpoints;
    this.#token = token;
  }

  get names(): string[] {
    return this.#endpoints.map(({ name }) => name);
  }

  /** Until a replica answers with success. @throws the signal's reason, with the last refusal as its cause */
  async insist(
    method: string,
    path: string,
    options: { signal: AbortSignal; body?: unknown; key?: string; at?: string },
  ): Promise<unknown> {
    let last: unknown;
    for (;;) {
      const endpoint = options.at ? this.#named(options.at) : this.#next();
      try {
        return await this.#call(endpoint, method, path, options);
      } catch (err) {
        if (options.signal.aborted) throw new Error(`${method} ${path}: ${String(last ?? err)}`);
        last = err;
      }
      await systemClock.sleep(AGAIN_MS, options.signal).catch(() => undefined);
    }
  }

  /**
   * Batches of a run as they happen, over as many connections as it takes, each batch once. Ends after the run's
   * last one, or when the signal aborts.
   */
  async *follow(runId: string, signal: AbortSignal): AsyncGenerator<SeenBatch, void> {
    let lastSeq = 0;
    while (!signal.aborted) {
      const ended = yield* this.#stream(this.#next(), runId, lastSeq, signal, (seq) => {
        lastSeq = seq;
      });
      if (ended) return;
      await systemClock.sleep(AGAIN_MS, signal).catch(() => undefined);
    }
  }

  /** All batches as one replica has them; null when it does not know the run. */
  async history(runId: string, at: string, signal: AbortSignal): Promise<SeenBatch[] | null> {
    while (!signal.aborted) {
      const lastSeq = await this.#eventSeq(this.#named(at), runId);
      if (lastSeq === null) return null;
      if (lastSeq === undefined) {
        await systemClock.sleep(AGAIN_MS, signal).catch(() => undefined);
        continue;
      }
      const batches: SeenBatch[] = [];
      const stream = this.#stream(this.#named(at), runId, 0, signal, () => undefined);
      for (;;) {
        const next = await stream.next();
        if (next.done) {
          if (next.value) return batches;
          break;
        }
        batches.push(next.value);
        // A run that has not ended has a stream that does not.
        if (next.value.seq >= lastSeq) return batches;
      }
      await systemClock.sleep(AGAIN_MS, signal).catch(() => undefined);
    }
    return [];
  }

  async logs(runId: string, signal: AbortSignal): Promise<LogPiece[]> {
    const text = (await this.insist("GET", `/v1/runs/${runId}/logs`, { signal })) as string;
    return text
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => {
        const { data, ...piece } = JSON.parse(line) as LogLine;
        return { ...piece, text: Buffer.from(data, "base64").toString("utf8") };
      });
  }

  /** True when the stream said that the run has ended. */
  async *#stream(
    endpoint: Endpoint,
    runId: string,
    lastSeq: number,
    signal: AbortSignal,
    onSeq: (seq: number) => void,
  ): AsyncGenerator<SeenBatch, boolean> {
    const silence = new AbortController();
    const scope = AbortSignal.any([signal, silence.signal]);
    let timer = systemClock.after(SILENT_MAX_MS, () => silence.abort());
    try {
      const headers = { ...this.#headers(), "last-event-id": String(lastSeq) };
      const response = await fetch(`${endpoint.url}/v1/runs/${runId}/events`, { headers, signal: scope });
      if (!response.ok || !response.body) {
        await response.body?.cancel();
        return false;
      }
      const decoder = new TextDecoder();
      let rest = "";
      for await (const bytes of response.body) {
        timer.cancel();
        timer = systemClock.after(SILENT_MAX_MS, () => silence.abort());
        const frames = (rest + decoder.decode(bytes as Uint8Array, { stream: true })).split("\n\n");
        rest = frames.pop() ?? "";
        for (const frame of frames) {
          if (frame.startsWith("event: end")) return true;
          const match = /^id: (\d+)\ndata: (.*)$/.exec(frame);
          if (!match) continue;
          const seq = Number(match[1]);
          onSeq(seq);
          yield { seq, events: (JSON.parse(match[2]!) as RunEventBatch).events };
        }
      }
      return false;
    } catch {
      return false; // cut, or silent: the next connection goes on after what was seen
    } finally {
      timer.cancel();
      silence.abort();
    }
  }

  async #call(
    { url }: Endpoint,
    method: string,
    path: string,
    options: { signal: AbortSignal; body?: unknown; key?: string },
  ): Promise<unknown> {
    const { body, key } = options;
    const late = new AbortController();
    const timer = systemClock.after(CALL_MAX_MS, () => late.abort(new Error("no answer in time")));
    try {
      const response = await fetch(url + path, {
        method,
        headers: {
          ...this.#headers(),
          ...(body ? { "content-type": "application/json" } : {}),
          ...(key ? { "idempotency-key": key } : {}),
        },
        ...(body ? { body: JSON.stringify(body) } : {}),
        signal: AbortSignal.any([options.signal, late.signal]),
      });
      const text = await response.text();
      if (!response.ok) throw new Refused(response.status, text);
      return response.headers.get("content-type")?.includes("ndjson") ? text : JSON.parse(text);
    } finally {
      timer.cancel();
    }
  }

  /** Null when the run is not known; undefined when there is no answer. */
  async #eventSeq(endpoint: Endpoint, runId: string): Promise<number | null | undefined> {
    try {
      const signal = new AbortController().signal;
      return ((await this.#call(endpoint, "GET", `/v1/runs/${runId}`, { signal })) as RunDetail).eventSeq;
    } catch (err) {
      return err instanceof Refused && err.status === 404 ? null : undefined;
    }
  }

  #headers(): Record<string, string> {
    return { authorization: `Bearer ${this.#token}`, "accept-encoding": "gzip" };
  }

  #next(): Endpoint {
    this.#turn = (this.#turn + 1) % this.#endpoints.length;
    return this.#endpoints[this.#turn]!;
  }

  #named(name: string): Endpoint {
    return this.#endpoints.find((endpoint) => endpoint.name === name)!;
  }
}
