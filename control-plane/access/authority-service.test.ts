/** Two replicas over one store and one directory of secrets, and roots that OpenSSL makes. */
import { execFileSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type NatsConnection } from "nats";
import pino from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { InsituError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import { startTestNats } from "../../test/support/nats.ts";
import { csrOf, newKeys } from "../gateway/gateway.fixture.ts";
import { openKv } from "../store/kv.ts";
import { type Authority, openAuthority } from "./authority.ts";
import { type AgentTrust, AuthorityRecord } from "./authority-book.ts";
import { AuthorityFiles } from "./authority-files.ts";
import { AUTHORITY_PREFIX, AuthorityService, REPLICA_KEYS_PREFIX, ReplicaKeys } from "./authority-service.ts";

const TRUST_DOMAIN = "insitu.test";
const clock = systemClock;
const agent = { environment: "hq", name: "a1" };
let directory: string;
let nats: Awaited<ReturnType<typeof startTestNats>>;
let connection: NatsConnection;
const services: AuthorityService[] = [];
let agents: AgentTrust[] = [];

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "insitu-authority-"));
  nats = await startTestNats();
  connection = await connect({ servers: nats.url, user: nats.user, pass: nats.password });
  agents = [];
});
afterEach(async () => {
  for (const service of services.splice(0)) await service.close();
  await connection.close();
  await nats.stop();
  rmSync(directory, { recursive: true, force: true });
});

interface Replica {
  service: AuthorityService;
  authority: Authority;
}

async function replica(replicaId: string, secrets = "secrets", serverNames = {}): Promise<Replica> {
  const options = { directory: join(directory, secrets), trustDomain: TRUST_DOMAIN, clock };
  const authority = await openAuthority(options);
  const service = new AuthorityService({
    kv: await openKv(connection, {
      bucket: "agents",
      clock,
      schema: AuthorityRecord,
      prefix: AUTHORITY_PREFIX,
    }),
    replicaKeys: await openKv(connection, {
      bucket: "agents",
      clock,
      schema: ReplicaKeys,
      prefix: REPLICA_KEYS_PREFIX,
    }),
    authority,
    files: new AuthorityFiles(options.directory),
    clock,
    log: pino({ level: "silent" }),
    replicaId,
    serverNames: { dns: ["gateway.example.org"], ips: ["192.0.2.7"], ...serverNames },
    replicas: () => ["one", "two"],
    agents: () => agents,
  });
  services.push(service);
  await service.start();
  return { service, authority };
}

const by = "ada";
const leafOf = async ({ authority }: Replica): Promise<X509Certificate> => {
  const key = await authority.readRequest(await csrOf(await newKeys()));
  return new X509Certificate((await authority.issueAgentCertificate(agent, key)).certificatePem);
};
const states = ({ service }: Replica) => service.show().issuers.map(({ state }) => state);

describe("a rotation", () => {
  test("is one for all replicas, whoever is asked, and a replica that starts later goes on with it", async () => {
    const [one, two] = [await replica("one"), await replica("two")];
    const before = await leafOf(one);
    const firstPin = one.service.firstPin;
    await one.service.rotate(by);
    await expect.poll(() => states(two)).toEqual(["active", "next"]);
    expect(two.authority.caPem).toBe(one.authority.caPem);
    expect(two.authority.roots?.pem).toBe(one.authority.caPem);
    await two.service.activate({ force: false, by });
    await expect.poll(() => states(one)).toEqual(["former", "active"]);
    const after = await leafOf(one);
    const [first, second] = one.service.show().issuers;
    expect([one.authority.issuerOf(before), two.authority.issuerOf(after)]).toEqual([first!.id, second!.id]);
    // Servers keep to the first until it is retired.
    expect(one.authority.caPin()).toBe(first!.rootPin);
    const third = await replica("one");
    expect(states(third)).toEqual(["former", "active"]);
    await two.service.retire({ id: first!.id, force: false, by });
    for (const each of [one, two, third]) {
      await expect.poll(() => states(each)).toEqual(["retired", "active"]);
      expect(each.authority.issuerOf(before)).toBeUndefined();
      expect(each.authority.caPin()).toBe(second!.rootPin);
      expect(each.service.firstPin).toBe(firstPin);
    }
    expect(existsSync(join(directory, "secrets", "ca.key.pem"))).toBe(false);
    const fourth = await replica("two");
    expect(states(fourth)).toEqual(["retired", "active"]);
    expect(fourth.authority.issuerOf(before)).toBeUndefined();
    expect(fourth.service.firstPin).toBe(firstPin);
  });

  test("that two replicas begin at once is one, and leaves no files of another", async () => {
    const [one, two] = [await replica("one"), await replica("two")];
    const both = await Promise.allSettled([one.service.rotate(by), two.service.rotate(by)]);
    expect(both.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    await expect
      .poll(() => [states(one), states(two)])
      .toEqual([
        ["active", "next"],
        ["active", "next"],
      ]);
    const keys = readdirSync(join(directory, "secrets")).filter((name) => name.endsWith(".key.pem"));
    expect(keys).toHaveLength(2);
  });

  test("waits for a replica that has not the key, and one that starts without it says which files it needs", async () => {
    const one = await replica("one");
    const apart = await replica("two", "apart").catch((err: Error) => err);
    expect(apart).not.toBeInstanceOf(Error); // with an authority of its own, nothing was changed yet
    const { issuers } = await one.service.rotate(by);
    const [, next] = issuers;
    await expect(one.service.activate({ force: true, by })).rejects.toThrow(
      new RegExp(`the replica two has no key of the issuer ${next!.id}: copy ca-${next!.id}.key.pem`),
    );
    await expect(replica("two", "elsewhere")).rejects.toThrow(/hold no key and certificates of the issuer/);
  });

  test("is not begun by the store alone: certificates that lie in no directory of secrets are not trusted", async () => {
    const one = await replica("one");
    const stranger = await openAuthority({
      directory: join(directory, "x"),
      trustDomain: TRUST_DOMAIN,
      clock,
    });
    const [files] = stranger.issuers;
    await one.service.rotate(by);
    const kv = await connection.jetstream().views.kv("agents");
    const record = AuthorityRecord.parse(JSON.parse((await kv.get("authority.issuers"))!.string()));
    const entry = { id: files!.id, rootPin: files!.rootPin, added: null, activated: null, retired: null };
    await kv.put("authority.issuers", JSON.stringify({ ...record, issuers: [...record.issuers, entry] }));
    await expect.poll(() => one.service.show().issuers.length).toBe(3);
    expect(one.authority.caPem).not.toContain(stranger.caPem.trim());
    expect(one.authority.roots).toBeUndefined();
  });
});

describe("a root that is kept elsewhere", () => {
  const file = (name: string): string => join(directory, name);
  const openssl = (...args: string[]): void => {
    execFileSync("openssl", args, { cwd: directory, stdio: "pipe" });
  };
  /** Root, and the request signed with it: with these extensions. */
  function sign(
    requestPem: string,
    extensions = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign",
    root = "basicConstraints=critical,CA:TRUE",
    more: string[] = ["-days", "365"],
  ): { root: string; signed: string } {
    writeFileSync(file("request.csr"), requestPem);
    writeFileSync(file("extensions"), extensions);
    openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", "root.key");
    const subject = ["-subj", "/O=Bank/CN=Bank Root", "-addext", root];
    openssl("req", "-x509", "-new", "-key", "root.key", "-days", "3650", ...subject, "-out", "root.crt");
    const from = ["-CA", "root.crt", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "extensions"];
    openssl("x509", "-req", "-in", "request.csr", ...from, "-sha384", ...more, "-out", "signed.crt");
    const read = (name: string): string => readFileSync(file(name), "utf8");
    return { root: read("root.crt"), signed: read("signed.crt") };
  }

  test("signs an intermediate, whose certificates lead to it; servers show the whole chain", async () => {
    const one = await replica("one");
    await replica("two");
    const { id, requestPem } = await one.service.request();
    expect(await one.service.request()).toMatchObject({ id });
    const { root, signed } = sign(requestPem);
    const view = await one.service.import({ chainPem: `Bag Attributes\n${signed}${root}`, by });
    expect(view.issuers.at(-1)).toMatchObject({
      id,
      state: "next",
      intermediate: true,
      subject: expect.stringContaining("CN=Insitu issuer"),
    });
    expect(one.authority.caPem).toContain(root.trim());
    expect(one.authority.caPem).not.toContain(signed.trim());
    const [first] = view.issuers;
    await expect
      .poll(() => one.service.activate({ force: false, by }).then(() => "done", String))
      .toBe("done");
    await one.service.retire({ id: first!.id, force: false, by });
    expect(one.authority.caPem.trim()).toBe(root.trim());

    const key = await one.authority.readRequest(await csrOf(await newKeys()));
    const { certificatePem } = await one.authority.issueAgentCertificate(agent, key);
    writeFileSync(file("agent.crt"), certificatePem);
    writeFileSync(file("between.crt"), signed);
    const { chainPem } = await one.authority.issueServerCertificate({ dns: [], ips: [] });
    writeFileSync(file("server.crt"), chainPem);
    for (const [leaf, purpose] of [
      ["agent.crt", "sslclient"],
      ["server.crt", "sslserver"],
    ] as const) {
      openssl("verify", "-purpose", purpose, "-CAfile", "root.crt", "-untrusted", "between.crt", leaf);
      expect(() => openssl("verify", "-CAfile", "root.crt", leaf)).toThrow();
    }
    expect(chainPem).toContain(signed.trim());
    expect(chainPem).toContain(root.trim());
    expect((await replica("one")).authority.caPem.trim()).toBe(root.trim());
  });

  test("and whatever is wrong with its chain is told with the certificate that it is wrong with", async () => {
    const one = await replica("one");
    const { requestPem } = await one.service.request();
    const ca = "basicConstraints=critical,CA:TRUE,pathlen:0";
    const take = (chainPem: string) => one.service.import({ chainPem, by });
    const refused = async (chainPem: string, why: RegExp) => {
      const err = InsituError.from(await take(chainPem).catch((thrown: unknown) => thrown));
      expect([err.code, err.message]).toEqual(["request.invalid", expect.stringMatching(why)]);
    };
    const { root, signed } = sign(requestPem);
    await refused("nothing", /no readable certificate/);
    await refused(
      signed,
      /certificate 1 of 1 \(O=Insitu, CN=.*\) is no root: it is issued by O=Bank, CN=Bank Root/,
    );
    await refused(root, /certificate 1 of 1 \(O=Bank, CN=Bank Root\) is alone/);
    await refused(root + signed, /certificate 1 of 2 .* is not issued by certificate 2 of 2/);
    await refused(signed.repeat(6), /there are 6 certificates/);
    const stranger = await openAuthority({ directory: file("x"), trustDomain: TRUST_DOMAIN, clock });
    await refused(signed + stranger.caPem, /certificate 1 of 2 .* is not issued by certificate 2 of 2/);
    await refused(
      stranger.caPem + stranger.caPem,
      /pathlen|is not issued by|which this server does not have/,
    );

    const cases: [string, string, string[], RegExp][] = [
      ["basicConstraints=CA:FALSE", "", [], /certificate 1 of 2 .*CA:TRUE/],
      [`${ca}\nkeyUsage=digitalSignature`, "", [], /certificate 1 of 2 .*keyCertSign/],
      [`${ca}\nextendedKeyUsage=serverAuth`, "", [], /certificate 1 of 2 .*clientAuth/],
      [ca, "basicConstraints=critical,CA:TRUE,pathlen:0", [], /certificate 2 of 2 \(O=Bank.*pathlen/],
      [ca, "", ["-sha1"], /certificate 1 of 2 .*SHA-1/],
      [
        `${ca}\nnameConstraints=permitted;DNS:bank.example`,
        "",
        [],
        /TLS to localhost fails: .*permitted subtree/i,
      ],
      [
        `${ca}\nnameConstraints=permitted;URI:bank.example`,
        "",
        [],
        /agent.s certificate is refused .*name constraints must allow/,
      ],
      [`${ca}\nnameConstraints=excluded;DNS:example.org`, "", [], /fails: .*excluded subtree/i],
    ];
    for (const [extensions, rootExtension, more, why] of cases) {
      const made = sign(requestPem, extensions, rootExtension || undefined, ["-days", "9", ...more]);
      await refused(made.signed + made.root, why);
    }
    const other = await openAuthority({ directory: file("y"), trustDomain: TRUST_DOMAIN, clock });
    expect(other.issuers).toHaveLength(1);
    expect(states(one)).toEqual(["active"]);
    // A name constraint that allows what we issue is no trouble.
    const allowed = sign(
      requestPem,
      `${ca}\nnameConstraints=permitted;DNS:localhost,permitted;DNS:example.org`,
    );
    await take(allowed.signed + allowed.root);
    expect(states(one)).toEqual(["active", "next"]);
  });
});
