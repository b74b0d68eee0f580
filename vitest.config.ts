import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["{shared,control-plane,agent,test,scripts,examples}/**/*.test.ts"],
    // Each file in a process of its own: suites start servers, addons and signal handlers.
    pool: "forks",
    // Two cores serve everything here; more suites at once make the timings of each worse and none faster.
    maxWorkers: 2,
    // Many of them wait for real programs, networks and elections: one that fails is run once more, and both are told.
    retry: 1,
    testTimeout: 20_000,
    hookTimeout: 30_000,
    teardownTimeout: 10_000,
    // A suite that leaves a rejection unhandled fails, as the product would end.
    dangerouslyIgnoreUnhandledErrors: false,
  },
});
