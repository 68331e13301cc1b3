#!/usr/bin/env node
import { runCommand } from './run-command.js';

await runCommand('kv-client');
