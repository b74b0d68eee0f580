/** The supervisor's program, which is killed where a test says. */
import "../kill-points.fixture.ts";
import "./main.ts";
