/** `insitu servers list`: the replicas of the control plane. */
import type { ServerView } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { duration } from "../text.ts";

export async function list(invocation: Invocation): Promise<number> {
  const { output, clock } = invocation;
  const client = await invocation.client();
  const servers = await client.listServers(invocation.signal);
  if (!output.people) {
    await output.data(servers);
    return EXIT.ok;
  }
  const nowMs = clock.wallMs();
  await output.table(servers, [
    { title: "SERVER", value: (server) => server.id },
    {
      title: "STATE",
      value: (server) => (server.alive ? "alive" : "silent"),
      hue: (server) => (server.alive ? "green" : "red"),
    },
    { title: "SHARDS", value: (server) => shardsOf(server) },
    { title: "API", value: (server) => server.url },
    { title: "GATEWAY", value: (server) => server.gateway },
    { title: "UP", value: (server) => (server.alive ? duration(nowMs - server.startedAtMs) : "-") },
    { title: "VERSION", value: (server) => server.software },
  ]);
  return EXIT.ok;
}

/** As ranges: "22: 0-20 63". */
function shardsOf({ shards }: Pick<ServerView, "shards">): string {
  const ranges: [number, number][] = [];
  for (const shard of [...shards].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && last[1] === shard - 1) last[1] = shard;
    else ranges.push([shard, shard]);
  }
  const some = ranges.slice(0, 3).map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`));
  const rest = ranges.length > some.length ? " …" : "";
  return shards.length === 0 ? "0" : `${shards.length}: ${some.join(" ")}${rest}`;
}
