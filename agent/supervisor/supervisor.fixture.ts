/** The real supervisor over its real socket, in the process of the test. */
import { systemClock } from "../../shared/system.ts";
import { Supervisors } from "./client.ts";
import { Supervisor } from "./supervisor.ts";

export class TestSupervisors extends Supervisors {
  readonly #running: Supervisor[];

  constructor(stateDir: string, running: Supervisor[] = []) {
    super({
      clock: systemClock,
      stateDir,
      software: "test",
      launch: (directory, socketPath) => {
        const supervisor = new Supervisor({
          directory,
          socketPath,
          software: "test",
          clock: systemClock,
          onIdle: () => undefined,
        });
        running.push(supervisor);
        void supervisor.start();
      },
    });
    this.#running = running;
  }

  async stop(): Promise<void> {
    this.close();
    await Promise.all(this.#running.map((supervisor) => supervisor.close("end of test")));
  }
}
