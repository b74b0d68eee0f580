import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { AckPolicy, connect, headers, type NatsConnection, RetentionPolicy } from "nats";
import { pino } from "pino";
import { afterEach, beforeEach, expect, test } from "vitest";
import { systemClock } from "../../shared/system.ts";
import { OFFER_SIGNATURE_HEADER } from "../../shared/wire/attempt.ts";
import { PROXY_PASSWORD, PROXY_USER, startConnectProxy } from "../../test/support/connect-proxy.ts";
import { startTestNats, type TestNats } from "../../test/support/nats.ts";
import { openNetwork, testDirectory, Until } from "../agent.fixture.ts";
import type { OfferMessage } from "../leases/attempt-service.ts";
import { Network } from "../network/network.ts";
import { ProxyConfig, proxyOf } from "../network/proxy.ts";
import { keepAccess, loadAccess, normalAccess } from "./nats-access.ts";
import { NatsPassage } from "./nats-passage.ts";
import { PullLoop } from "./pull-loop.ts";

const STREAM = "WORK";
const CONSUMER = "env-dream";
let nats: TestNats;
let centre: NatsConnection;

beforeEach(async () => {
  nats = await startTestNats();
  centre = await connect({
    servers: nats.url,
    user: nats.user,
    pass: nats.password,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 50,
  });
  const manager = await centre.jetstreamManager();
  await manager.streams.add({ name: STREAM, subjects: ["work.>"], retention: RetentionPolicy.Workqueue });
  await manager.consumers.add(STREAM, {
    durable_name: CONSUMER,
    filter_subject: "work.dream",
    ack_policy: AckPolicy.Explicit,
    ack_wait: 30_000_000_000,
  });
});
afterEach(async () => {
  for (const puller of pullers.splice(0)) await puller.loop.close();
  await centre.close();
  await nats.stop();
});

const pullers: Puller[] = [];
const noPassage = new NatsPassage({
  way: openNetwork.way,
  random: () => 0,
  gateways: () => [],
  identity: () => {
    throw new Error("nothing is to go this way");
  },
});

/** A loop with slots that are filled by what arrives and freed by hand. */
class Puller {
  readonly got: { text: string; signature: string; message: OfferMessage }[] = [];
  readonly log: { level: number; msg: string; text?: string }[] = [];
  readonly until = new Until();
  free: number;
  readonly loop: PullLoop;

  constructor(
    slots: number,
    change: {
      scheme?: "nats" | "tls";
      servers?: string[];
      password?: string;
      network?: Network;
      onOffer?: (message: OfferMessage) => void;
    } = {},
  ) {
    this.free = slots;
    this.loop = new PullLoop({
      clock: systemClock,
      log: pino(
        {},
        {
          write: (line: string) => {
            this.log.push(JSON.parse(line));
            this.until.changed();
          },
        },
      ),
      network: change.network ?? openNetwork,
      access: {
        servers: change.servers ?? [nats.url.replace(/^nats:/, `${change.scheme ?? "nats"}:`)],
        user: nats.user,
        password: change.password ?? nats.password,
        inboxPrefix: "_INBOX.a1",
        stream: STREAM,
        consumer: CONSUMER,
        caPem: "",
        userJwt: "",
        throughGateway: false,
      },
      passage: noPassage,
      userSeed: "",
      freeSlots: () => this.free,
      onOffer: (message) => {
        this.free -= 1;
        const text = Buffer.from(message.payload).toString();
        this.got.push({ text, signature: message.signature, message });
        change.onOffer?.(message);
        this.until.changed();
      },
    });
    this.loop.start();
    pullers.push(this);
  }

  texts(): string[] {
    return this.got.map(({ text }) => text);
  }
  received(count: number): Promise<void> {
    return this.until.holds(() => this.got.length >= count);
  }
  said(msg: string, times = 1): Promise<void> {
    return this.until.holds(() => this.log.filter((line) => line.msg === msg).length >= times);
  }
  freeOne(): void {
    this.free += 1;
    this.loop.poke();
  }
}

async function publish(...texts: string[]): Promise<void> {
  const head = headers();
  head.set(OFFER_SIGNATURE_HEADER, "signed");
  for (const text of texts) await centre.jetstream().publish("work.dream", text, { headers: head });
}

const consumerInfo = async () => (await centre.jetstreamManager()).consumers.info(STREAM, CONSUMER);
const messages = async () => (await (await centre.jetstreamManager()).streams.info(STREAM)).state.messages;

/** The server answers in order: once this has come back, all that it owed before has gone out. */
async function settled(): Promise<void> {
  await centre.flush();
  await consumerInfo();
}

test("behind a proxy it finds the server that is there, and comes back to it when it was restarted", async () => {
  await using proxy = await startConnectProxy();
  using directory = testDirectory();
  const passwordFile = join(directory.path, "password");
  writeFileSync(passwordFile, PROXY_PASSWORD);
  const given = proxyOf(ProxyConfig.parse({ url: proxy.url, username: PROXY_USER, passwordFile }));
  await using network = new Network({ clock: systemClock, siteCaPem: "", proxy: given });
  const puller = new Puller(5, { network, servers: ["nats://127.0.0.1:1", nats.url] });
  await publish("1");
  await puller.received(1);
  expect(puller.log.some(({ text }) => /opens no way to 127\.0\.0\.1:1/.test(text ?? ""))).toBe(true);
  await nats.kill();
  await nats.restart();
  const connections = () => puller.log.filter(({ msg }) => /^work queue connected/.test(msg)).length;
  await puller.until.holds(() => connections() >= 2);
  await publish("2");
  // The acknowledgement of the first may have died with the server: then it comes again.
  await puller.until.holds(() => puller.texts().includes("2"));
  expect(new Set(puller.texts())).toEqual(new Set(["1", "2"]));
  expect(new Set(proxy.opened)).toEqual(new Set([`127.0.0.1:${nats.port}`]));
});

test("takes as many offers as there are slots, and the next when one becomes free", async () => {
  await publish("1", "2", "3", "4", "5");
  const puller = new Puller(3);
  await puller.received(3);
  await settled();
  expect(puller.texts()).toEqual(["1", "2", "3"]);
  expect(puller.got[0]?.signature).toBe("signed");
  expect(await consumerInfo()).toMatchObject({ num_ack_pending: 3, num_pending: 2 });
  puller.freeOne();
  await puller.received(4);
  await settled();
  expect(puller.texts()).toEqual(["1", "2", "3", "4"]);
});

test("an offer that comes while slots wait is delivered by the request that is open", async () => {
  const puller = new Puller(2);
  await puller.said("work queue connected");
  await centre.flush();
  await publish("1");
  await puller.received(1);
  await publish("2", "3");
  await puller.received(2);
  await settled();
  expect(puller.texts()).toEqual(["1", "2"]);
});

test("an acknowledged offer has left the queue, a discarded one too, and one given back comes again", async () => {
  const answered: string[] = [];
  const puller = new Puller(1, {
    onOffer: (message) => {
      const text = Buffer.from(message.payload).toString();
      const answer =
        text === "take" ? "ack" : text === "bad" ? "discard" : answered.includes("later") ? "ack" : "back";
      answered.push(answer === "back" ? "later" : answer);
      if (answer === "ack") message.ack();
      else if (answer === "discard") message.discard();
      else message.giveBack(20);
      queueMicrotask(() => puller.freeOne());
    },
  });
  await publish("take", "bad", "other");
  await puller.received(4);
  expect(puller.texts()).toEqual(["take", "bad", "other", "other"]);
  await settled();
  expect(await messages()).toBe(0);
});

test("while nothing is taken, an offer for a request that is still open goes to another agent", async () => {
  const first = new Puller(1);
  await first.said("work queue connected");
  await settled();
  first.free = 0; // cordoned
  const second = new Puller(1);
  await second.said("work queue connected");
  await publish("1");
  await second.received(1);
  expect(first.texts()).toEqual([]);
});

test("goes on after the server was killed and has come back", async () => {
  const puller = new Puller(2);
  await publish("1");
  await puller.received(1);
  await nats.kill();
  await puller.said("work queue lost; connecting again");
  await nats.restart();
  await puller.said("work queue connected again");
  await publish("2");
  await puller.received(2);
  // The acknowledgement of the first may have died with the server: then it comes again before the second.
  if (!puller.texts().includes("2")) await puller.received(3);
  expect(new Set(puller.texts())).toEqual(new Set(["1", "2"]));
});

test("an acknowledgement that died with the server is sent again, and takes the offer off the queue", async () => {
  const puller = new Puller(2);
  await publish("1");
  await puller.received(1);
  await nats.kill();
  puller.got[0]!.message.ack();
  await puller.said("work queue lost; connecting again");
  await nats.restart();
  await puller.said("work queue connected again");
  await expect.poll(messages, { timeout: 10_000 }).toBe(0);
});

test("connects when the server comes up after the agent, and says the trouble once", async () => {
  await nats.kill();
  const puller = new Puller(1);
  await puller.said("work queue trouble");
  await nats.restart();
  await puller.said("work queue connected");
  await publish("1");
  await puller.received(1);
  expect(puller.log.filter(({ msg }) => msg === "work queue trouble")).toHaveLength(1);
});

test("credentials that are refused are said, and tried again", async () => {
  const puller = new Puller(1, { password: "wrong" });
  await puller.said("work queue trouble");
  expect(puller.log[0]?.text).toMatch(/authorization/i);
  expect(puller.loop.connected).toBe(false);
});

test("a tls:// address is never spoken to in the clear, also without a CA of its own", async () => {
  await publish("1");
  const puller = new Puller(1, { scheme: "tls" });
  await puller.said("work queue trouble");
  expect(puller.log[0]?.text).toMatch(/tls/i);
  expect(puller.log.filter(({ msg }) => msg === "work queue connected")).toEqual([]);
  expect([puller.loop.connected, puller.texts()]).toEqual([false, []]);
});

test("closes while the server is away", async () => {
  const puller = new Puller(1);
  await puller.said("work queue connected");
  await nats.kill();
  await puller.said("work queue lost; connecting again");
  await puller.loop.close();
  expect(puller.loop.connected).toBe(false);
});

test("a thousand offers over eight slots arrive once each and leave nothing behind", async () => {
  const count = 1_000;
  const puller = new Puller(8, {
    onOffer: (message) => {
      message.ack();
      setImmediate(() => puller.freeOne());
    },
  });
  await Promise.all(Array.from({ length: count }, (_, i) => publish(String(i))));
  await puller.received(count);
  await settled();
  expect(new Set(puller.texts()).size).toBe(count);
  expect(puller.got).toHaveLength(count);
  expect(await messages()).toBe(0);
});

// The last of it may take the queue's own 30 s, when the server was about to send it as the request went.
test("what comes to a loop that closes is given back, and goes to the next one", {
  timeout: 60_000,
}, async () => {
  const closing: Promise<void>[] = [];
  const former = new Puller(0, {
    onOffer: () => {
      if (closing.length === 0) closing.push(former.loop.close());
    },
  });
  await former.said("work queue connected");
  const texts = ["a", "b", "c", "d", "e"];
  await publish(...texts);
  former.free = texts.length;
  former.loop.poke();
  await former.received(1);
  await Promise.all(closing);
  const next = new Puller(100);
  await next.received(texts.length - 1);
  expect(former.texts()).toHaveLength(1);
  expect([...former.texts(), ...next.texts()].sort()).toEqual(texts);
});

test("an access that is kept and one that is told are the same when they say the same", () => {
  const told = {
    throughGateway: true,
    userJwt: "",
    caPem: "",
    consumer: "c",
    stream: "S",
    inboxPrefix: "i",
    password: "p",
    user: "u",
    servers: ["nats://a:1"],
  };
  const directory = testDirectory();
  const file = join(directory.path, "nats.json");
  keepAccess(file, told);
  expect(JSON.stringify(loadAccess(file))).toBe(JSON.stringify(normalAccess(told)));
  directory[Symbol.dispose]();
});
