#!/usr/bin/env node
import "../dist/insitu-agent.js";
