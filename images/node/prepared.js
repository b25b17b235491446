// Node.js that waits for its program, and goes on to it. It is loaded before the file that the command names; what is told and when:
// src/image/prepare.rs. The arguments and variables that the task adds are put in place.
"use strict";
// Each worker loads it, too.
if (require("node:worker_threads").isMainThread) {
  const fs = require("node:fs");
  const take = (length) => {
    const said = Buffer.alloc(length);
    for (let at = 0; at < length; ) {
      const read = fs.readSync(0, said, at, length - at, null);
      if (read === 0) process.exit(0);
      at += read;
    }
    return said;
  };
  fs.writeSync(1, "\n");
  let length = "";
  for (let digit; (digit = take(1).toString()) !== "\n"; ) length += digit;
  const [count, ...words] = take(Number(length)).toString().split("\0").slice(0, -1);
  process.argv.push(...words.slice(2, Number(count)));
  const split = (variable) => [variable.slice(0, variable.indexOf("=")), variable.slice(variable.indexOf("=") + 1)];
  // In the order in which a process gets them.
  const env = Object.fromEntries(words.slice(Number(count)).map(split));
  const whole = { ...process.env, ...env };
  for (const name of Object.keys(process.env)) delete process.env[name];
  for (const name of Object.keys(whole).sort()) process.env[name] = whole[name];
  process.execArgv.length = 0;
  delete require.cache[__filename];
}
