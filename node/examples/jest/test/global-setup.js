const { portSetup } = require('portlock/jest');

// One port for the whole run, in an environment variable.
module.exports = portSetup({ WEB_PORT: {} });
