const { portSetup } = require('portlock/jest');

// One port for all of the run, in an environment variable.
module.exports = portSetup({ WEB_PORT: {} });
