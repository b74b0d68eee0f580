/** `insitu poison list|show|drop`: messages that nobody could make sense of. */
import type { PoisonView } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseCount } from "../invocation.ts";
import { fieldLines } from "../output.ts";
import { duration, oneLine, printable } from "../text.ts";

export async function list(invocation: Invocation): Promise<number> {
  const { output, clock } = invocation;
  const poison = await (await invocation.client()).listPoison(invocation.signal);
  if (!output.people) {
    await output.data(poison);
    return EXIT.ok;
  }
  if (poison.length === 0) {
    await output.note("No message was set aside.");
    return EXIT.ok;
  }
  const nowMs = clock.wallMs();
  await output.table<PoisonView>(poison, [
    { title: "ID", value: ({ id }) => String(id), right: true },
    { title: "AGE", value: ({ keptAtMs }) => duration(Math.max(0, nowMs - keptAtMs)) },
    { title: "SOURCE", value: ({ source }) => source },
    { title: "WHERE", value: whereOf },
    { title: "FROM", value: ({ from }) => from || "-" },
    { title: "BYTES", value: ({ bytes }) => String(bytes), right: true },
    { title: "REASON", value: ({ reason }) => reason },
  ]);
  return EXIT.ok;
}

export async function show(invocation: Invocation, [id = ""]: string[]): Promise<number> {
  const { output, signal } = invocation;
  const poison = await (await invocation.client()).getPoison(parseCount(id, "ID"), signal);
  if (!output.people) {
    await output.data(poison);
    return EXIT.ok;
  }
  const data = Buffer.from(poison.data, "base64");
  const fields = [
    ["id", String(poison.id)],
    ["kept", new Date(poison.keptAtMs).toISOString()],
    ["source", poison.source],
    ["where", oneLine(whereOf(poison))],
    ["from", oneLine(poison.from) || "not known"],
    ["reason", oneLine(poison.reason)],
    [
      "bytes",
      data.length < poison.bytes ? `${poison.bytes}; its first ${data.length} are kept` : `${data.length}`,
    ],
  ] as const;
  for (const line of fieldLines(fields, output.paint)) await output.line(line);
  await output.line();
  await output.line(printable(data.toString("utf8")));
  return EXIT.ok;
}

export async function drop(invocation: Invocation, [text = ""]: string[]): Promise<number> {
  const { output, signal } = invocation;
  const id = parseCount(text, "ID");
  await (await invocation.client()).dropPoison(id, signal);
  if (output.people) await output.line(`poison message ${id} dropped`);
  else await output.data({ id, dropped: true });
  return EXIT.ok;
}

function whereOf({ subject, seq }: Pick<PoisonView, "subject" | "seq">): string {
  return seq === null ? subject : `${subject} #${seq}`;
}
