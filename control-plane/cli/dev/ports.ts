/** Ports for the server: those of the last start, else the usual ones, else free ones. */
import { createServer } from "node:net";
import { InsituError } from "../../../shared/errors.ts";

const HOST = "127.0.0.1";

/**
 * @param fixed a person asked for this one, so another will not do
 * @throws InsituError `unavailable` when a fixed port is taken
 */
export async function choosePort(options: {
  fixed?: number | undefined;
  preferred: number;
  what: string;
}): Promise<number> {
  const { fixed, preferred, what } = options;
  if (fixed !== undefined) {
    if (fixed === 0 || (await tryPort(fixed)) !== null) return fixed;
    throw new InsituError(
      "unavailable",
      `port ${fixed} for ${what} is taken; choose another one, or leave the flag out for a free one`,
    );
  }
  const port = (await tryPort(preferred)) ?? (await tryPort(0));
  if (port === null) throw new InsituError("unavailable", `there is no free port for ${what} on ${HOST}`);
  return port;
}

/** The port that could be opened; null when it is taken. Whoever opens it next may still lose a race for it. */
function tryPort(port: number): Promise<number | null> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(null));
    server.listen({ port, host: HOST, exclusive: true }, () => {
      const address = server.address();
      const opened = typeof address === "object" && address !== null ? address.port : port;
      server.close(() => resolve(opened));
    });
  });
}
