/**
 * Pulls offers from the work queue, never more than there are free slots.
 *
 * Speaks the pull protocol of JetStream itself (a request with `batch` and `expires` to
 * `$JS.API.CONSUMER.MSG.NEXT.<stream>.<consumer>`): the client's `consume` fetches ahead of the slots, and its
 * recovery needs the consumer's INFO, which agents have no right to.
 */
import {
  type ConnectionOptions,
  connect,
  Events,
  jwtAuthenticator,
  type Msg,
  type NatsConnection,
  nanos,
  type Subscription,
} from "nats";
import type { Logger } from "pino";
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret, type Timer } from "../../shared/system.ts";
import { OFFER_SIGNATURE_HEADER } from "../../shared/wire/attempt.ts";
import { mendNatsTransport } from "../../shared/wire/nats-transport.ts";
import { OWNERS_HEADER } from "../../shared/wire/offer-owners.ts";
import type { OfferMessage } from "../leases/attempt-service.ts";
import { natsAddress } from "../network/address.ts";
import type { Network } from "../network/network.ts";
import type { NatsAccess } from "./nats-access.ts";
import { teachNatsToDial } from "./nats-dial.ts";
import { endpointFor } from "./nats-endpoints.ts";
import type { NatsPassage } from "./nats-passage.ts";

const PULL_EXPIRES_MS = 20_000;
/** How often the queue says that it still holds a request that has nothing to give. */
const PULL_HEARTBEAT_MS = 2_000;
/** After so long without a word, the server of a cluster that held the request has gone: ask the next one. */
const PULL_SILENCE_MS = 5_000;
/** An offer is off the queue when the queue says so: one that is not, another agent gets after half a minute. */
const ACK_AGAIN_MS = 1_000;
const ACK_GIVE_UP_MS = 25_000;
const CHECK_MS = 500;
const RETRY_MS = 250;
const RETRY_MAX_MS = 5_000;
const CONNECT_TIMEOUT_MS = 3_000;
/** Through a gateway it waits its turn, and there are more round trips until NATS has said a word. */
const PASSAGE_TIMEOUT_MS = 25_000;
const FLUSH_MAX_MS = 1_000;

export interface PullLoopOptions {
  clock: Clock;
  log: Logger;
  access: NatsAccess;
  network: Network;
  passage: NatsPassage;
  /** Secret, of the key that the access is for. */
  userSeed: string;
  /** 0 while the agent takes no work. */
  freeSlots(): number;
  onOffer(message: OfferMessage): void;
}

interface Request {
  remaining: number;
  heardAtMs: number;
}

interface Acknowledgement {
  /** Where the queue takes it. */
  subject: string;
  sentAtMs: number;
  firstMs: number;
}

export class PullLoop {
  readonly #options: PullLoopOptions;
  /** In the order of asking, which is the order in which the server serves them. */
  readonly #requests = new Map<string, Request>();
  /** Sent, and not confirmed by the queue yet. */
  readonly #acks = new Map<string, Acknowledgement>();
  readonly #stop = new AbortController();
  #connection: NatsConnection | undefined;
  #subscription: Subscription | undefined;
  #inbox = "";
  #count = 0;
  #timer: Timer | undefined;
  #done: Promise<void> = Promise.resolve();
  #lastComplaint = "";

  constructor(options: PullLoopOptions) {
    this.#options = options;
  }

  get connected(): boolean {
    return this.#connection !== undefined && !this.#connection.isClosed();
  }

  start(): void {
    this.#done = this.#connect();
  }

  /** Stops pulling and lets the connection go. What is on its way here meanwhile is given back to the queue. */
  async close(): Promise<void> {
    this.#stop.abort(new InsituError("cancelled", "closed"));
    this.#timer?.cancel();
    const connection = this.#connection;
    if (connection) {
      // First nobody listens any more, so that the server drops the requests that are open, and what it had sent
      // before that has arrived and was given back; then what is still in the buffer goes out. An offer that comes to
      // a connection that has gone is not offered again before the queue has waited for its acknowledgement; one that
      // the server was about to send at that moment still may. Without a server there is no end of waiting for it.
      const flushed = new AbortController();
      const emptied = Promise.resolve(this.#subscription?.drain())
        .then(() => connection.flush())
        .catch(() => undefined);
      await Promise.race([
        emptied,
        this.#options.clock.sleep(FLUSH_MAX_MS, flushed.signal).catch(() => undefined),
      ]);
      flushed.abort();
      await connection.close();
    }
    await this.#done;
  }

  /** A slot may have become free. */
  poke(): void {
    this.#pull();
  }

  async #connect(): Promise<void> {
    const { access, clock, network, userSeed } = this.#options;
    const passage = access.throughGateway ? this.#options.passage : undefined;
    const options: ConnectionOptions = {
      ...(access.userJwt === ""
        ? { user: access.user, pass: access.password }
        : { authenticator: jwtAuthenticator(access.userJwt, Buffer.from(userSeed)) }),
      inboxPrefix: access.inboxPrefix,
      reconnectTimeWait: 200,
      reconnectJitter: 300,
      timeout: passage ? PASSAGE_TIMEOUT_MS : CONNECT_TIMEOUT_MS,
      pingInterval: 5_000,
      maxPingOut: 2,
      ignoreAuthErrorAbort: true,
    };
    mendNatsTransport();
    teachNatsToDial();
    const way = { network, passage, signal: this.#stop.signal };
    // The client comes back by itself; a connection that it has closed for good is opened anew here.
    let turn = 0;
    for (let retryMs = RETRY_MS; !this.#stop.signal.aborted; retryMs = Math.min(retryMs * 2, RETRY_MAX_MS)) {
      try {
        const connection = await connect({ ...options, ...(await endpointFor(way, access, turn++)) });
        retryMs = RETRY_MS;
        this.#connection = connection;
        if (this.#stop.signal.aborted) return await connection.close();
        await this.#serve(connection);
      } catch (err) {
        this.#complain(`cannot be reached: ${this.#trouble() ?? InsituError.from(err).message}`);
      }
      await clock.sleep(retryMs, this.#stop.signal).catch(() => undefined);
    }
  }

  /** What a gateway or the site's proxy said. */
  #trouble(): string | undefined {
    const { access, network, passage } = this.#options;
    if (access.throughGateway) return passage.trouble;
    return access.servers
      .map((server) => network.troubleOf(natsAddress(server).address))
      .find((trouble) => trouble !== undefined);
  }

  /** Resolves when the connection is closed. */
  async #serve(connection: NatsConnection): Promise<void> {
    const { access, log, clock } = this.#options;
    log.info({ server: connection.getServer() }, "work queue connected");
    this.#lastComplaint = "";
    this.#requests.clear();
    this.#inbox = `${access.inboxPrefix}.${newSecret(9)}`;
    this.#subscription = connection.subscribe(`${this.#inbox}.*`, {
      callback: (err, message) => this.#receive(err, message),
    });
    this.#timer = clock.every(CHECK_MS, () => this.#check());
    this.#pull();
    await this.#watch(connection);
    this.#timer.cancel();
  }

  /** After a reconnect the server knows nothing of the requests that were open. */
  async #watch(connection: NatsConnection): Promise<void> {
    const statuses = connection.status()[Symbol.asyncIterator]();
    // The client leaves this iterator open when its connection closes: whoever stops would wait for ever.
    const closed = connection.closed().then(() => ({ done: true, value: undefined }) as const);
    for (;;) {
      const { done, value: status } = await Promise.race([statuses.next(), closed]);
      if (done) return;
      if (status.type === Events.Disconnect) this.#options.log.warn({}, "work queue lost; connecting again");
      if (status.type !== Events.Reconnect) continue;
      this.#options.log.info({ server: connection.getServer() }, "work queue connected again");
      this.#requests.clear();
      this.#pull();
    }
  }

  #outstanding(): number {
    let sum = 0;
    for (const { remaining } of this.#requests.values()) sum += remaining;
    return sum;
  }

  #pull(): void {
    const connection = this.#connection;
    if (!connection || connection.isClosed() || this.#stop.signal.aborted) return;
    const free = this.#options.freeSlots();
    const outstanding = this.#outstanding();
    const wanted = free - outstanding;
    // One open request keeps delivery immediate; asking again for every single slot would double the traffic.
    if (wanted <= 0 || (outstanding > 0 && wanted < free / 2)) return;
    const { stream, consumer } = this.#options.access;
    const id = String(++this.#count);
    this.#requests.set(id, { remaining: wanted, heardAtMs: this.#options.clock.monotonicMs() });
    const body = JSON.stringify({
      batch: wanted,
      expires: nanos(PULL_EXPIRES_MS),
      idle_heartbeat: nanos(PULL_HEARTBEAT_MS),
    });
    connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`, body, {
      reply: `${this.#inbox}.${id}`,
    });
  }

  #receive(err: Error | null, message: Msg): void {
    if (err) return this.#complain(err.message);
    const code = message.headers?.code ?? 0;
    const name = message.subject.slice(message.subject.lastIndexOf(".") + 1);
    if (!message.reply && this.#acks.has(name)) {
      // 503: nobody listens there now, as while a cluster elects a leader. The next check sends it again.
      if (code !== 503) this.#acks.delete(name);
      return;
    }
    // A status comes on the request's own subject; an offer keeps the subject it was published under.
    if (code !== 0 && !message.reply) {
      if (code === 100) return this.#heard(this.#requests.get(name));
      this.#requests.delete(name);
      // 404 and 408: nothing to do now, or the request has expired. Others say that something is wrong.
      if (code !== 404 && code !== 408) this.#complain(`${code} ${message.headers?.description ?? ""}`);
      else this.#pull();
      return;
    }
    this.#servedOne();
    const { reply } = message;
    const connection = this.#connection!;
    const answer = (text: string): void => {
      if (reply && !connection.isClosed()) connection.publish(reply, text);
    };
    const giveBack = (afterMs: number): void =>
      answer(afterMs > 0 ? `-NAK {"delay":${nanos(afterMs)}}` : "-NAK");
    // A request that is open cannot be taken back: what comes after a cordon goes to another agent.
    if (this.#stop.signal.aborted || this.#options.freeSlots() <= 0) return giveBack(0);
    this.#options.onOffer({
      payload: message.data,
      signature: message.headers?.get(OFFER_SIGNATURE_HEADER) ?? "",
      owners: message.headers?.get(OWNERS_HEADER) ?? "",
      ack: () => {
        if (reply) this.#acknowledge(reply);
      },
      discard: () => answer("+TERM"),
      giveBack,
    });
  }

  #acknowledge(subject: string): void {
    const nowMs = this.#options.clock.monotonicMs();
    const name = `ack-${++this.#count}`;
    this.#acks.set(name, { subject, sentAtMs: nowMs, firstMs: nowMs });
    this.#sendAck(name, subject);
  }

  #sendAck(name: string, subject: string): void {
    const connection = this.#connection;
    if (connection && !connection.isClosed())
      connection.publish(subject, "+ACK", { reply: `${this.#inbox}.${name}` });
  }

  #heard(request: Request | undefined): void {
    if (request) request.heardAtMs = this.#options.clock.monotonicMs();
  }

  #servedOne(): void {
    for (const [id, request] of this.#requests) {
      request.remaining -= 1;
      this.#heard(request);
      if (request.remaining <= 0) this.#requests.delete(id);
      return;
    }
  }

  #check(): void {
    const nowMs = this.#options.clock.monotonicMs();
    for (const [id, request] of this.#requests) {
      if (nowMs > request.heardAtMs + PULL_SILENCE_MS) this.#requests.delete(id);
    }
    for (const [name, ack] of this.#acks) {
      if (nowMs > ack.firstMs + ACK_GIVE_UP_MS) this.#acks.delete(name);
      else if (nowMs > ack.sentAtMs + ACK_AGAIN_MS) {
        ack.sentAtMs = nowMs;
        this.#sendAck(name, ack.subject);
      }
    }
    this.#pull();
  }

  /** The same trouble is said once, not twice a second. The next check asks again. */
  #complain(text: string): void {
    if (text !== this.#lastComplaint)
      this.#options.log.warn({ text, servers: this.#options.access.servers }, "work queue trouble");
    this.#lastComplaint = text;
  }
}
