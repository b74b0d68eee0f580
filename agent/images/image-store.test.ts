import { execFileSync } from "node:child_process";
import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { makeLayout, NO_IMAGES } from "../../test/support/oci-layout.ts";
import { type TestDirectory, testDirectory } from "../agent.fixture.ts";
import { ImageStore } from "./image-store.ts";
import { imagesCommand } from "./images-command.ts";

let directory: TestDirectory;
let stateDir: string;
let store: ImageStore;

beforeEach(() => {
  directory = testDirectory();
  stateDir = directory.path;
  store = new ImageStore(stateDir);
});
afterEach(() => directory[Symbol.dispose]());

const layout = (name = "layout"): string => join(directory.path, name);
const small = { busybox: false, files: { hello: "world" } };
const nothingIsLeft = (): void => expect(readdirSync(join(stateDir, "images"))).toEqual([]);

describe.skipIf(NO_IMAGES !== undefined)("an image", () => {
  test("is imported from a directory or a tar of it, found by its digest, listed and removed", async () => {
    const { path, digest } = makeLayout(layout(), { ...small, config: { Cmd: ["/hello"], Env: ["A=b=c"] } });
    expect(await store.find(digest)).toBeUndefined();
    const tar = join(directory.path, "image.tar");
    execFileSync("tar", ["-cf", tar, "-C", path, "."]);
    expect(await store.import(tar, { nowMs: 7 })).toMatchObject({ isNew: true, image: { digest } });
    expect(await store.import(path, { nowMs: 8 })).toMatchObject({ isNew: false });
    const image = await store.find(digest);
    expect(image).toMatchObject({ digest, cmd: ["/hello"], env: ["A=b=c"], entrypoint: [] });
    expect(readFileSync(join(image!.rootfs, "hello"), "utf8")).toBe("world");
    expect(await store.list()).toEqual([image]);
    expect(await store.remove(digest)).toBe(true);
    expect(await store.remove(digest)).toBe(false);
    nothingIsLeft();
  });

  test("of an index for platforms is found by either digest", async () => {
    const { path, digest, index } = makeLayout(layout(), { ...small, index: true });
    expect((await store.import(path, { nowMs: 1 })).image).toMatchObject({ digest, indexes: [index] });
    expect((await store.find(index!))?.digest).toBe(digest);
    expect((await store.import(path, { nowMs: 1, wanted: index })).image.digest).toBe(digest);
    const other = store.import(path, { nowMs: 1, wanted: `sha256:${"0".repeat(64)}` });
    await expect(other).rejects.toThrow(new RegExp(`it holds ${digest}`));
  });

  test("that was changed on its way is not taken, whichever part it was", async () => {
    const { path } = makeLayout(layout(), small);
    const blobs = join(path, "blobs", "sha256");
    for (const blob of readdirSync(blobs)) {
      const before = readFileSync(join(blobs, blob));
      const changed = Buffer.from(before);
      changed[changed.length - 2]! ^= 1;
      writeFileSync(join(blobs, blob), changed);
      await expect(store.import(path, { nowMs: 1 })).rejects.toThrow(/damaged or was changed/);
      writeFileSync(join(blobs, blob), Buffer.concat([before, Buffer.from("\n")]));
      await expect(store.import(path, { nowMs: 1 })).rejects.toThrow(/damaged or was changed|more bytes/);
      rmSync(join(blobs, blob));
      await expect(store.import(path, { nowMs: 1 })).rejects.toThrow(/cannot be (read|copied): ENOENT/);
      writeFileSync(join(blobs, blob), before);
    }
    nothingIsLeft();
    expect((await store.import(path, { nowMs: 1 })).isNew).toBe(true);
  });

  test("for another architecture, of a format that is none, or one of several is not taken", async () => {
    const foreign = makeLayout(layout("foreign"), { ...small, architecture: "s390x" });
    await expect(store.import(foreign.path, { nowMs: 1 })).rejects.toThrow(/is for linux\/s390x/);
    await expect(store.import(directory.path, { nowMs: 1 })).rejects.toThrow(
      /no OCI image layout.*skopeo copy/,
    );
    const one = makeLayout(layout("one"), small);
    const two = makeLayout(layout("two"), { ...small, config: { Cmd: ["x"] } });
    execFileSync("cp", ["-r", join(two.path, "blobs"), one.path]);
    const [first, second] = [one, two].map(({ path }) =>
      JSON.parse(readFileSync(join(path, "index.json"), "utf8")),
    );
    writeFileSync(
      join(one.path, "index.json"),
      JSON.stringify({ ...first, manifests: [...first.manifests, ...second.manifests] }),
    );
    await expect(store.import(one.path, { nowMs: 1 })).rejects.toThrow(
      /several images; say which with --digest/,
    );
    expect((await store.import(one.path, { nowMs: 1, wanted: two.digest })).image.digest).toBe(two.digest);
  });

  test("is unpacked below its own root, whatever links its layers lay", async () => {
    const outside = join(directory.path, "outside");
    const { path, digest } = makeLayout(layout(), {
      ...small,
      links: { way: directory.path },
      layers: [{ "way/outside": "written through a link" }],
    });
    await store.import(path, { nowMs: 1 });
    expect(existsSync(outside)).toBe(false);
    const { rootfs } = (await store.find(digest))!;
    expect(lstatSync(join(rootfs, "way")).isDirectory()).toBe(true);
  });
});

describe.skipIf(NO_IMAGES !== undefined)("insitu-agent images", () => {
  let said = "";
  const run = (argv: string[], uid = process.getuid!()): Promise<number> => {
    said = "";
    const write = (text: string): void => {
      said += text;
    };
    return imagesCommand([...argv, "--state-dir", stateDir], { write, nowMs: () => 0, uid, env: {} });
  };

  test("imports, lists and removes, and says how steps name the image", async () => {
    const { path, digest } = makeLayout(layout(), { ...small, config: { Cmd: ["/hello"] } });
    expect(await run(["import", path])).toBe(0);
    expect(said).toContain(`container: { image: NAME@${digest} }`);
    expect(await run(["list"])).toBe(0);
    expect(said).toBe(`${digest}  1970-01-01T00:00:00.000Z  "/hello"\n`);
    expect(await run(["remove", digest])).toBe(0);
    expect(await run(["list"])).toBe(0);
    expect(said).toMatch(/^no images here/);
  });

  test("says what is wrong with what it was told", async () => {
    await expect(run(["pull", "x"])).rejects.toThrow(
      /no command "images pull"; it is import, list or remove/,
    );
    await expect(run(["import"])).rejects.toThrow(/needs the path of a layout/);
    await expect(run(["remove", "latest"])).rejects.toThrow(/"latest" is no digest/);
    await expect(run(["import", join(directory.path, "none")])).rejects.toThrow(/cannot be read: ENOENT/);
    await expect(run(["list"], process.getuid!() + 1)).rejects.toThrow(
      /belongs to the user .* run this as that user/,
    );
  });
});
