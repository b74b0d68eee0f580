import { PROTOCOL_MAJOR, PROTOCOL_MINOR, SOFTWARE_VERSION } from "../../shared/wire/protocol.ts";

/** What this agent says of itself in every hello. */
export function softwareVersion() {
  const software = `insitu-agent ${SOFTWARE_VERSION} (node ${process.versions.node}, ${process.platform} ${process.arch})`;
  return { major: PROTOCOL_MAJOR, minor: PROTOCOL_MINOR, software, capabilities: ["logs.gzip"] };
}
